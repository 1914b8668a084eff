"""The names of output formats, as in vLLM, and the classes that parse them, imported when asked for."""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any, Final, NamedTuple, cast

from server.errors import ServerError
from server.parsers.base import ToolParser


class ParserPath(NamedTuple):
    """Where a parser's class is."""

    module: str
    """Below `server.parsers`."""
    name: str


TOOL_PARSERS: Final[Mapping[str, ParserPath]] = {
    "deepseek_v3": ParserPath("tools.deepseek", "DeepseekV3Parser"),
    "deepseek_v31": ParserPath("tools.deepseek", "DeepseekV31Parser"),
    "granite": ParserPath("tools.granite", "GraniteParser"),
    "granite-20b-fc": ParserPath("tools.granite", "Granite20bParser"),
    "granite4": ParserPath("tools.hermes", "Granite4Parser"),
    "hermes": ParserPath("tools.hermes", "HermesParser"),
    "internlm": ParserPath("tools.internlm", "InternlmParser"),
    "jamba": ParserPath("tools.jamba", "JambaParser"),
    "llama3_json": ParserPath("tools.llama_json", "LlamaJsonParser"),
    "llama4_json": ParserPath("tools.llama_json", "LlamaJsonParser"),
    "longcat": ParserPath("tools.hermes", "LongcatParser"),
    "mistral": ParserPath("tools.mistral", "MistralParser"),
    "phi4_mini_json": ParserPath("tools.phi4_mini", "Phi4MiniParser"),
    "qwen3_json": ParserPath("tools.hermes", "HermesParser"),
    "xlam": ParserPath("tools.xlam", "XlamParser"),
}
"""Values of `--tool-call-parser`, besides those of a plugin."""

AUTO: Final = "auto"
"""The value that stands for the format of the model's files."""


class PluginError(ServerError):
    """The name or the plugin of a parser cannot be used."""


def load_tool_parser(name: str) -> type[ToolParser]:
    """Imports the class of a name in `TOOL_PARSERS`."""
    return cast("type[ToolParser]", _load(TOOL_PARSERS[name]))


def load_plugin(file: str) -> Mapping[str, type[ToolParser]]:
    """Runs a Python file and returns its `TOOL_PARSERS`, which maps names to classes.

    Raises:
        PluginError: the file cannot be run, or defines no such mapping.
    """
    try:
        spec = spec_from_file_location("tool_parser_plugin", file)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return dict(module.TOOL_PARSERS)
    except Exception as err:
        raise PluginError(f"the plugin {file} cannot be used: {type(err).__name__}: {err}") from err


def _load(path: ParserPath) -> Any:
    return getattr(import_module(f"server.parsers.{path.module}"), path.name)
