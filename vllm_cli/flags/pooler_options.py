"""The type of `--pooler-config`: JSON, as vLLM accepts it."""

from dataclasses import fields
from typing import Any, Final

import click

from server.errors import ConfigError
from server.pooler_config import PoolerConfig
from vllm_cli.flags.param_types import JsonObject

_NEUTRAL: Final[dict[str, Any]] = {
    "step_tag_id": None,
    "returned_token_ids": None,
}
"""vLLM's other keys, with the values that change nothing."""


class PoolerOptions(click.ParamType):
    """How a pooling model turns hidden states into vectors or scores."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> PoolerConfig:
        """The error names the key that is unknown or that the embedded engine does not support."""
        if isinstance(value, PoolerConfig):
            return value
        given = {key.replace("-", "_"): item for key, item in JsonObject().convert(value, param, ctx).items()}
        given.pop("enable_flash_late_interaction", None)
        if "normalize" in given:
            self.fail("Parameter `normalize` was removed; use `use_activation` instead.", param, ctx)
        known = [field.name for field in fields(PoolerConfig)]
        for key in [key for key in given if key not in known]:
            if key not in _NEUTRAL:
                self.fail(f"{key!r} is not one of its keys: {', '.join(known)}.", param, ctx)
            if given.pop(key) != _NEUTRAL[key]:
                self.fail(f"the embedded engine does not support {key}.", param, ctx)
        try:
            return PoolerConfig(**given)
        except ConfigError as err:
            self.fail(f"{err}.", param, ctx)
