"""Detects formats from a model's files, for `--tool-call-parser auto` and `--reasoning-parser auto`."""

import logging
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from server.text.parsers.formats import ReasoningFormat, ToolFormat

logger = logging.getLogger(__name__)

FALLBACK: Final = "hermes"
"""The format if none is detected. It is the most common one, and a prompt can describe it to any model."""

_Marks = tuple[tuple[str, tuple[str, ...]], ...]
"""Pairs of a format and texts. A model has the first format whose texts are all in its chat template."""

_TOOL_MARKS: Final[_Marks] = (
    ("openai", ("<|channel|>", "<|constrain|>")),
    ("seed_oss", ("<seed:tool_call>",)),
    ("gigachat3", ("<|function_call|>",)),
    ("gigachat3", ("function call<|role_sep|>",)),
    ("gemma4", ("<|tool_call>call:",)),
    ("functiongemma", ("<start_function_call>",)),
    ("lfm2", ("<|tool_call_start|>",)),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜>", "```json")),
    ("deepseek_v31", ("<｜tool▁calls▁begin｜>",)),
    ("glm45", ("<arg_key>",)),
    ("qwen3_xml", ("<tool_call>", "<function=")),
    ("olmo3", ("<function_calls>", "<functions>")),
    ("mistral", ("[TOOL_CALLS]",)),
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

_REASONING_MARKS: Final[_Marks] = (
    ("openai_gptoss", ("<|channel|>", "analysis")),
    ("seed_oss", ("<seed:think>",)),
    ("glm45", ("<arg_key>", "<think>")),
    ("gemma4", ("<|channel>", "thought")),
    ("hunyuan_a13b", ("<|extra_0|>", "<think>")),
    ("ernie45", ("<think>", "<response>")),
    ("mistral", ("[THINK]",)),
    ("granite", ("Here is my thought process",)),
    ("deepseek_v3", ("<｜Assistant｜>", "</think>", "thinking")),
    ("deepseek_r1", ("<｜Assistant｜>", "</think>")),
    ("qwen3", ("<think>", "enable_thinking")),
    ("deepseek_r1", ("<think>",)),
    ("deepseek_r1", ("</think>",)),
)

_TOOL_TYPES: Final = {"gpt_oss": "openai"}

_REASONING_TYPES: Final = {"gpt_oss": "openai_gptoss"}

_TOOL_TOKENS: Final = {
    "[TOOL_CALLS]": "mistral",
    "<|action_start|>": "internlm",
    "<|tool_call_start|>": "lfm2",
    "<start_function_call>": "functiongemma",
    "<|tool_call>": "gemma4",
    "<|tool_call|>": "granite",
    "<tool_call>": "hermes",
    "<|python_start|>": "llama4_pythonic",
    "<|python_tag|>": "llama3_json",
}
"""Token of a vocabulary -> the format of models with this token."""

_REASONING_TOKENS: Final = {"[THINK]": "mistral", "<seed:think>": "seed_oss"}


class ModelFacts(NamedTuple):
    """The properties of a model from which its formats of tool calls and reasoning are detected."""

    template: str | None
    """The chat template that is used for conversations with tools."""
    model_type: str | None
    tokens: Collection[str]
    """The added tokens of the vocabulary."""
    response_template: Any = None
    """The model's own description of its output, for transformers."""

    def own_formats(self) -> tuple[ToolFormat | None, ReasoningFormat | None]:
        """Returns the formats of calls and of reasoning in `response_template`, each if it has one."""
        if self.response_template is None:
            return None, None
        from server.text.parsers.own_template import read_response_template  # noqa: PLC0415 - few models have one

        try:
            return read_response_template(self.response_template)
        except (ValueError, TypeError, AttributeError) as err:
            logger.warning("the model's response_template is ignored: %s", err)
            return None, None


class Detected(NamedTuple):
    """A detected format, and the property of the model by which it was detected."""

    name: str
    source: str


def detect_tool_format(facts: ModelFacts) -> Detected | None:
    """Detects the format of tool calls from the chat template, the model's type or a token, in this order."""
    return _detect(facts, _TOOL_MARKS, _TOOL_TYPES, _TOOL_TOKENS)


def detect_reasoning_format(facts: ModelFacts) -> Detected | None:
    """Detects the format of reasoning from the same properties. None if no property shows a format."""
    return _detect(facts, _REASONING_MARKS, _REASONING_TYPES, _REASONING_TOKENS)


def _detect(facts: ModelFacts, marks: _Marks, types: Mapping[str, str], tokens: Mapping[str, str]) -> Detected | None:
    for name, texts in marks:
        if all(text in (facts.template or "") for text in texts):
            return Detected(name, "chat template")
    if facts.model_type is not None and facts.model_type in types:
        return Detected(types[facts.model_type], "model_type")
    for token, name in tokens.items():
        if token in facts.tokens:
            return Detected(name, f"token {token}")
    return None
