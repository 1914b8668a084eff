"""The type of `--log-config-file`: the file is read and checked before anything starts."""

import json
from pathlib import Path
from typing import Any

import click

from envs.home import expand_home


class LogConfigFile(click.ParamType):
    """A JSON file with a dictionary for `logging.config.dictConfig`."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """The error names the fault and its position in the file."""
        if isinstance(value, dict):
            return value
        try:
            content = json.loads(Path(expand_home(value)).read_text(encoding="utf-8"))
        except OSError as err:
            self.fail(f"{value!r} cannot be read: {err.strerror}.", param, ctx)
        except ValueError as err:
            self.fail(f"{value!r} is not JSON: {err}.", param, ctx)
        if not isinstance(content, dict):
            self.fail(f"{value!r} does not contain a JSON object.", param, ctx)
        if content.get("version") != 1:
            self.fail(f'{value!r} is not a logging configuration: "version": 1 is missing.', param, ctx)
        return content
