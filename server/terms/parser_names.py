"""The names of output formats, as in vLLM. `server.text.parsers.formats` has the formats."""

from typing import Final

AUTO: Final = "auto"
"""The value with which the model's files determine the format."""

TOOL_FORMATS: Final = (
    "deepseek_v3", "deepseek_v31", "ernie45", "functiongemma", "gemma4", "gigachat3", "glm45", "glm47", "granite",
    "granite-20b-fc", "granite4", "hermes", "hunyuan_a13b", "internlm", "jamba", "lfm2", "ling3", "llama3_json",
    "llama4_json", "llama4_pythonic", "mimo", "mistral", "olmo3", "openai", "phi4_mini_json", "poolside_v1",
    "pythonic", "qwen3_coder", "qwen3_json", "qwen3_xml", "seed_oss", "step3p5", "xlam",
)  # fmt: skip
"""Values of `--tool-call-parser`."""

REASONING_FORMATS: Final = (
    "deepseek_r1", "deepseek_v3", "ernie45", "gemma4", "glm45", "glm47", "granite", "granite_thinking_parser",
    "holo2", "hunyuan_a13b", "ling3", "mimo", "minicpmv", "mistral", "nemotron_v3", "olmo3", "openai_gptoss",
    "poolside_v1", "qwen3", "seed_oss", "step3p5",
)  # fmt: skip
"""Values of `--reasoning-parser`."""
