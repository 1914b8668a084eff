"""The value of `--pooler-config`: JSON, as vLLM takes it."""

from dataclasses import fields
from typing import Any, Final

import click

from server.config import ConfigError, PoolerConfig
from vllm_cli.flags.param_types import JsonObject

_HARMLESS: Final[dict[str, Any]] = {
    "enable_chunked_processing": False,
    "max_embed_len": None,
    "step_tag_id": None,
    "returned_token_ids": None,
}
"""vLLM's other keys, and the values that ask for nothing."""


class PoolerOptions(click.ParamType[PoolerConfig]):
    """How a pooling model makes numbers of its hidden states."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> PoolerConfig:
        """Names the key that is unknown or that the embedded engine cannot honour."""
        if isinstance(value, PoolerConfig):
            return value
        given = {key.replace("-", "_"): item for key, item in JsonObject().convert(value, param, ctx).items()}
        given.pop("enable_flash_late_interaction", None)
        if "normalize" in given:
            self.fail("Parameter `normalize` was removed; use `use_activation` instead.", param, ctx)
        known = [field.name for field in fields(PoolerConfig)]
        for key in [key for key in given if key not in known]:
            if key not in _HARMLESS:
                self.fail(f"{key!r} is no key of it; these are: {', '.join(known)}.", param, ctx)
            if given.pop(key) != _HARMLESS[key]:
                self.fail(f"the embedded engine knows no {key}.", param, ctx)
        try:
            return PoolerConfig(**given)
        except ConfigError as err:
            self.fail(f"{err}.", param, ctx)
