"""Imports the parser of an output format by the format's name. The names are vLLM's."""

from importlib import import_module
from typing import Any, cast

from base.errors import ServerError
from server.terms.parser_paths import REASONING_FORMATS, TOOL_PARSERS, ParserPath
from server.text.parsers.base import ReasoningFormat, ToolParser


class ParserMissingError(ServerError):
    """The library that the format needs is not installed."""


def load_tool_parser(name: str) -> type[ToolParser]:
    """Imports the parser with this name in `TOOL_PARSERS`.

    Raises:
        ParserMissingError: the library of this format is not installed.
    """
    try:
        return cast("type[ToolParser]", _load(TOOL_PARSERS[name]))
    except ModuleNotFoundError as err:
        raise ParserMissingError(f"the parser {name} needs the package {err.name}, which is not installed") from err


def load_reasoning_format(name: str) -> ReasoningFormat:
    """Imports the format with this name in `REASONING_FORMATS`."""
    return cast("ReasoningFormat", _load(REASONING_FORMATS[name]))


def _load(path: ParserPath) -> Any:
    return getattr(import_module(f"server.text.parsers.{path.module}"), path.name)
