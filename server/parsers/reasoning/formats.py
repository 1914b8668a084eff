"""The formats of reasoning that are two tags; names, tags and rules are those of vLLM 0.32."""

from typing import Final

from server.parsers.reasoning.tags import TagFormat, TemplateKwargs


def _is_enabled(kwargs: TemplateKwargs) -> bool:
    return bool(kwargs.get("enable_thinking", True))


def _is_asked_for(kwargs: TemplateKwargs) -> bool:
    return bool(kwargs.get("thinking")) or bool(kwargs.get("enable_thinking"))


def _is_not_refused(kwargs: TemplateKwargs) -> bool:
    is_silent = kwargs.get("thinking") is None and kwargs.get("enable_thinking") is None
    return is_silent or _is_asked_for(kwargs)


_TOOL_CALL: Final = ("<tool_call>",)

DEEPSEEK_R1: Final = TagFormat()
DEEPSEEK_V3: Final = TagFormat(switch=_is_asked_for)
ERNIE45: Final = TagFormat(strips_answer=True, answer_tags=("<response>", "</response>"))
GEMMA4: Final = TagFormat(
    starts=("<|channel>",),
    ends=("<channel|>",),
    answer_starts=("<|tool_call>",),
    label="thought\n",
    is_open_at_start=False,
    strips_reasoning=True,
)
GLM45: Final = TagFormat(answer_starts=_TOOL_CALL, strips_reasoning=True, switch=_is_not_refused)
GRANITE: Final = TagFormat(
    starts=("Here is my thought process:", "Here's my thought process:"),
    ends=("Here is my response:", "Here's my response:"),
    is_open_at_start=False,
    must_begin_output=True,
)
GRANITE_THINKING: Final = TagFormat(
    answer_starts=_TOOL_CALL, strips_reasoning=True, strips_answer=True, switch=_is_enabled
)
HOLO2: Final = TagFormat(switch=_is_not_refused)
HUNYUAN_A13B: Final = TagFormat(
    starts=("<think>\n",),
    ends=("\n</think>\n<answer>\n",),
    is_open_at_start=False,
    answer_tags=("", "\n</answer>"),
)
MISTRAL: Final = TagFormat(
    starts=("[THINK]",),
    ends=("[/THINK]",),
    answer_starts=("[TOOL_CALLS]",),
    is_open_at_start=False,
    strips_reasoning=True,
)
NEMOTRON_V3: Final = TagFormat(answer_starts=_TOOL_CALL, strips_reasoning=True, switch=_is_enabled)
OLMO3: Final = TagFormat()
QWEN3: Final = TagFormat(answer_starts=_TOOL_CALL, switch=_is_enabled)
SEED_OSS: Final = TagFormat(
    starts=("<seed:think>",), ends=("</seed:think>",), answer_starts=("<seed:tool_call>",), switch=_is_enabled
)
STEP3P5: Final = TagFormat(answer_starts=_TOOL_CALL, strips_reasoning=True)
