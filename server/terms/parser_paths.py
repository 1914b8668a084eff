"""The names of output formats, as in vLLM, and the module and class of each in `server.text.parsers`."""

from collections.abc import Mapping
from typing import Final, NamedTuple


class ParserPath(NamedTuple):
    """The module and the name of a parser's class, or of a format of reasoning."""

    module: str
    """The module below `server.text.parsers`."""
    name: str


TOOL_PARSERS: Final[Mapping[str, ParserPath]] = {
    "deepseek_v3": ParserPath("tools.json_formats", "DeepseekV3Parser"),
    "deepseek_v31": ParserPath("tools.json_formats", "DeepseekV31Parser"),
    "ernie45": ParserPath("tools.json_formats", "HermesParser"),
    "functiongemma": ParserPath("tools.markup_formats", "FunctionGemmaParser"),
    "gemma4": ParserPath("tools.gemma4", "Gemma4Parser"),
    "gigachat3": ParserPath("tools.json_formats", "Gigachat3Parser"),
    "glm45": ParserPath("tools.markup_formats", "Glm45Parser"),
    "glm47": ParserPath("tools.markup_formats", "Glm45Parser"),
    "granite": ParserPath("tools.json_formats", "GraniteParser"),
    "granite-20b-fc": ParserPath("tools.json_formats", "Granite20bParser"),
    "granite4": ParserPath("tools.json_formats", "Granite4Parser"),
    "hermes": ParserPath("tools.json_formats", "HermesParser"),
    "hunyuan_a13b": ParserPath("tools.json_formats", "JambaParser"),
    "internlm": ParserPath("tools.json_formats", "InternlmParser"),
    "jamba": ParserPath("tools.json_formats", "JambaParser"),
    "ling3": ParserPath("tools.markup_formats", "Glm45Parser"),
    "lfm2": ParserPath("tools.pythonic", "Lfm2Parser"),
    "llama3_json": ParserPath("tools.json_formats", "LlamaJsonParser"),
    "llama4_json": ParserPath("tools.json_formats", "LlamaJsonParser"),
    "llama4_pythonic": ParserPath("tools.pythonic", "Llama4PythonicParser"),
    "mimo": ParserPath("tools.markup_formats", "MimoParser"),
    "mistral": ParserPath("tools.json_formats", "MistralParser"),
    "olmo3": ParserPath("tools.pythonic", "Olmo3Parser"),
    "openai": ParserPath("tools.openai", "HarmonyParser"),
    "phi4_mini_json": ParserPath("tools.json_formats", "Phi4MiniParser"),
    "poolside_v1": ParserPath("tools.markup_formats", "Glm45Parser"),
    "pythonic": ParserPath("tools.pythonic", "PythonicParser"),
    "qwen3_coder": ParserPath("tools.markup_formats", "Qwen3XmlParser"),
    "qwen3_json": ParserPath("tools.json_formats", "HermesParser"),
    "qwen3_xml": ParserPath("tools.markup_formats", "Qwen3XmlParser"),
    "seed_oss": ParserPath("tools.markup_formats", "SeedOssParser"),
    "step3p5": ParserPath("tools.markup_formats", "Qwen3XmlParser"),
    "xlam": ParserPath("tools.json_formats", "XlamParser"),
}
"""Value of `--tool-call-parser` -> module and class."""

REASONING_FORMATS: Final[Mapping[str, ParserPath]] = {
    "deepseek_r1": ParserPath("reasoning_formats", "DEEPSEEK_R1"),
    "deepseek_v3": ParserPath("reasoning_formats", "DEEPSEEK_V3"),
    "ernie45": ParserPath("reasoning_formats", "ERNIE45"),
    "gemma4": ParserPath("reasoning_formats", "GEMMA4"),
    "glm45": ParserPath("reasoning_formats", "GLM45"),
    "glm47": ParserPath("reasoning_formats", "GLM45"),
    "granite": ParserPath("reasoning_formats", "GRANITE"),
    "granite_thinking_parser": ParserPath("reasoning_formats", "GRANITE_THINKING"),
    "holo2": ParserPath("reasoning_formats", "HOLO2"),
    "hunyuan_a13b": ParserPath("reasoning_formats", "HUNYUAN_A13B"),
    "ling3": ParserPath("reasoning_formats", "GLM45"),
    "mimo": ParserPath("reasoning_formats", "QWEN3"),
    "minicpmv": ParserPath("reasoning_formats", "QWEN3"),
    "mistral": ParserPath("reasoning_formats", "MISTRAL"),
    "nemotron_v3": ParserPath("reasoning_formats", "NEMOTRON_V3"),
    "olmo3": ParserPath("reasoning_formats", "OLMO3"),
    "openai_gptoss": ParserPath("tools.openai", "GPT_OSS"),
    "poolside_v1": ParserPath("reasoning_formats", "DEEPSEEK_V3"),
    "qwen3": ParserPath("reasoning_formats", "QWEN3"),
    "seed_oss": ParserPath("reasoning_formats", "SEED_OSS"),
    "step3p5": ParserPath("reasoning_formats", "STEP3P5"),
}
"""Value of `--reasoning-parser` -> module and class."""

AUTO: Final = "auto"
"""The value with which the model's files determine the parser."""
