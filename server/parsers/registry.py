"""The names of output formats, as in vLLM, and the classes that parse them, imported when asked for."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final, NamedTuple, cast

from server.parsers.base import ToolParser


class ParserPath(NamedTuple):
    """Where a parser's class is."""

    module: str
    """Below `server.parsers`."""
    name: str


_HERMES: Final = ParserPath("tools.hermes", "HermesParser")

TOOL_PARSERS: Final[Mapping[str, ParserPath]] = {
    "hermes": _HERMES,
    "longcat": ParserPath("tools.hermes", "LongcatParser"),
    "qwen3_json": _HERMES,
}
"""Values of `--tool-call-parser`."""


def load_tool_parser(name: str) -> type[ToolParser]:
    """Imports the class of a name in `TOOL_PARSERS`."""
    return cast("type[ToolParser]", _load(TOOL_PARSERS[name]))


def _load(path: ParserPath) -> Any:
    return getattr(import_module(f"server.parsers.{path.module}"), path.name)
