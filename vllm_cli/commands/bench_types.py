"""Types of option values of the benchmarks."""

import shlex
from pathlib import Path
from typing import Any

import click


class Levels(click.ParamType):
    """Comma-separated numbers, each 1 or more."""

    name = "n,n,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Numbers in ascending order, each once."""
        try:
            levels = sorted({int(part) for part in str(value).split(",")})
        except ValueError:
            levels = [0]
        if levels[0] < 1:
            self.fail(f"{value!r} is not a list such as 1,8,32.", param, ctx)
        return tuple(levels)


class Percentage(click.ParamType):
    """A share such as `5%`."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """`5%` and `5` both become 0.05."""
        try:
            percent = float(str(value).removesuffix("%"))
        except ValueError:
            percent = -1.0
        if not 0 <= percent < 100:
            self.fail(f"{value!r} is not a percentage such as 5%.", param, ctx)
        return percent / 100


class ShellWords(click.ParamType):
    """A command as it is typed in a shell."""

    name = "command"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Fails on an unclosed quote or an empty command."""
        try:
            words = shlex.split(value)
        except ValueError as err:
            self.fail(f"{value!r} is not a command: {err}.", param, ctx)
        if not words:
            self.fail("the command is empty.", param, ctx)
        return str(value)


class ServerUrl(click.ParamType):
    """The address of a running server."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Adds http:// if the scheme is missing."""
        address = str(value) if "://" in str(value) else f"http://{value}"
        if not address.startswith(("http://", "https://")):
            self.fail(f"{value!r} is not an address such as http://127.0.0.1:8000.", param, ctx)
        return address


class ResultFile(click.Path):
    """A file that is written at the end of the run; checked before the run."""

    def __init__(self, *, allow_dash: bool = False) -> None:
        super().__init__(dir_okay=False, writable=True, allow_dash=allow_dash, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Fails if the folder does not exist."""
        path = Path(str(super().convert(value, param, ctx)))
        if not path.parent.is_dir():
            self.fail(f"{str(path.parent)!r} is not a folder.", param, ctx)
        return path
