"""Tells the format of tool calls from a model's files, for `--tool-call-parser auto`."""

from collections.abc import Collection
from typing import Final, NamedTuple

FALLBACK: Final = "hermes"
"""The most common format, of which any model can be told in a prompt."""

_TEMPLATE_MARKS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("kimi_k2", ("<|tool_calls_section_begin|>",)),
    ("openai", ("<|channel|>", "<|constrain|>")),
    ("deepseek_v32", ("｜DSML｜",)),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜>", "```json")),
    ("deepseek_v31", ("<｜tool▁calls▁begin｜>",)),
    ("glm45", ("<arg_key>",)),
    ("qwen3_xml", ("<tool_call>", "<function=")),
    ("olmo3", ("<function_calls>", "<functions>")),
    ("mistral", ("[TOOL_CALLS]",)),
    ("longcat", ("<longcat_tool_call>",)),
    ("granite-20b-fc", ("<function_call>",)),
    ("granite", ("<|tool_call|>",)),
    ("granite4", ("<|start_of_role|>", "<tool_call>")),
    ("internlm", ("<|action_start|>",)),
    ("jamba", ("<tool_calls>",)),
    ("phi4_mini_json", ("functools",)),
    ("phi4_mini_json", ("<|tool|>",)),
    ("xlam", ('[{"name": "tool_call_name", "arguments"',)),
    ("llama4_json", ("<|header_start|>", '"parameters"')),
    ("llama4_pythonic", ("<|header_start|>", "[func_name")),
    ("llama3_json", ("<|start_header_id|>", '"parameters"')),
    ("pythonic", ("[func_name",)),
    ("hermes", ("<tool_call>",)),
)
"""Format -> texts that are all in the template of its models; the first match applies."""

_MODEL_TYPES: Final = {"gpt_oss": "openai", "deepseek_v32": "deepseek_v32"}

_TOKENS: Final = {
    "[TOOL_CALLS]": "mistral",
    "<|tool_calls_section_begin|>": "kimi_k2",
    "<|action_start|>": "internlm",
    "<|tool_call|>": "granite",
    "<tool_call>": "hermes",
    "<|python_start|>": "llama4_pythonic",
    "<|python_tag|>": "llama3_json",
}
"""Token of a vocabulary -> format of models that have it."""


class Detected(NamedTuple):
    """A format, and what told it."""

    name: str
    source: str


def detect_tool_format(*, template: str | None, model_type: str | None, tokens: Collection[str]) -> Detected | None:
    """The format, by the template for conversations with tools, the model's type, or its added tokens."""
    for name, marks in _TEMPLATE_MARKS:
        if all(mark in (template or "") for mark in marks):
            return Detected(name, "chat template")
    if model_type in _MODEL_TYPES:
        return Detected(_MODEL_TYPES[model_type], "model_type")
    return next((Detected(name, f"token {token}") for token, name in _TOKENS.items() if token in tokens), None)
