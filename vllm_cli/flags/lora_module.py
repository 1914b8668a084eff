"""The type of `--lora-modules`."""

from typing import Any

import click

from server.errors import ConfigError
from server.lora_config import LoraModule


class LoraModuleType(click.ParamType):
    """An adapter's name and path."""

    name = "name=path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> LoraModule:
        """The error shows both ways to write it."""
        if isinstance(value, LoraModule):
            return value
        try:
            return LoraModule.parse(str(value))
        except ConfigError as err:
            self.fail(str(err), param, ctx)
