"""The formats in which models write tool calls and reasoning, as data. Their names and rules are vLLM's.

Texts of a format are regular expressions. `OutputParser` searches for them while text arrives. So each match
has a limited length, and no part of a match may be a match itself.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import regex

from server.text.parsers.call_text import Reader, read_gemma_call, read_json_calls, read_python_calls, tagged

TemplateKwargs = Mapping[str, Any]


class CallFormat(NamedTuple):
    """The texts that a format writes around the JSON of a call's arguments. Grammars are built from them."""

    trigger: str
    """The text with which every call begins. Nothing else begins with this text."""
    begins: tuple[str, ...]
    """Texts that may follow the trigger. `NAME` stands for the function's name."""
    ends: tuple[str, ...]


class ReasoningFormat(NamedTuple):
    """The markers around a model's reasoning."""

    starts: tuple[str, ...] = ("<think>",)
    """The texts that begin the reasoning, the usual one first."""
    ends: tuple[str, ...] = ("</think>",)
    """The texts that end the reasoning, the usual one first."""
    pauses: tuple[str, ...] = ()
    """Texts that end a part of the reasoning, after which more reasoning may follow."""
    answer_starts: tuple[str, ...] = ()
    """Texts that end the reasoning and belong to the answer, such as the tag of a tool call."""
    opening: str = ""
    """What begins the reasoning in the output, if this is more than `starts`."""
    drop: str = ""
    """What is dropped from the answer, such as the tags around it."""
    label: str = ""
    """Text that is dropped at the beginning of the reasoning."""
    is_open_at_start: bool = True
    """Whether the output begins with reasoning if neither prompt nor output has a start marker."""
    must_begin_output: bool = False
    """Whether the start tag counts only at the beginning of the output."""
    strips_reasoning: bool = False
    """Whether white space at the end of the reasoning is dropped."""
    strips_answer: bool = False
    """Whether line breaks at the beginning of the answer are dropped."""
    has_budget: bool = True
    """Whether the server can end the reasoning after a number of tokens, by the first of `ends`."""
    is_used: Callable[[TemplateKwargs], bool] = lambda _: True
    """Whether the model reasons when its chat template is rendered with these variables."""


class ToolFormat(NamedTuple):
    """How a model writes tool calls."""

    opening: str
    """The beginning of a call, up to its body. The group `name` is the function's, `id` the call's id."""
    read: Reader = read_json_calls
    """Reads the body."""
    close: str | None = None
    """The end of the body. None if the body is in brackets, and so ends with the last bracket."""
    quotes: tuple[str, ...] = ('"',)
    """The texts around strings of a body in brackets."""
    stop: str = "<"
    """Text that cannot be in the body but in strings. It ends a body whose brackets are damaged."""
    after: str = ""
    """What is dropped after a call, such as its end marker, once or several times."""
    must_begin_output: bool = False
    """Whether the text must begin with the calls, except for reasoning and blanks."""
    needs_special_tokens: bool = True
    """Whether markers may be special tokens. If so, the detokenizer must not skip special tokens."""
    call_format: CallFormat | None = None
    """The texts around arguments. None if no grammar can force a call's arguments to follow their schema."""
    reasoning: ReasoningFormat | None = None
    """The format of reasoning of all models with this format of calls, even without `--reasoning-parser`."""
    makes_ids: bool = False
    """Whether the server makes ids that Mistral's templates accept."""
    is_forced: bool = False
    """Whether the text has only calls. All other text is dropped, and a call may be incomplete at the end."""


def _json(*markers: str, body: str = r"\{", end: str = "", **options: Any) -> ToolFormat:
    """Returns a format with JSON after any of the markers."""
    after = rf"\s{{0,64}}{regex.escape(end)}" if end else ""
    return ToolFormat(opening=rf"(?:{any_of(*markers)})\s{{0,64}}(?={body})", after=after, **options)


def any_of(*texts: str) -> str:
    """Returns a pattern that matches any of these texts. Without a text, it matches nothing."""
    return "|".join(map(regex.escape, texts)) or "(?!)"


def _hermes_grammar(start: str, end: str) -> CallFormat:
    head = '{"name": "NAME", "arguments": '
    return CallFormat(start, ("\n" + head, head), ("}\n" + end, "}" + end))


_CALL_KEYS: Final = r'\s{0,64}"(?:name|arguments|parameters|type)"\s{0,16}:'
"""What follows the bracket of a call in formats whose calls have no marker."""

_HERMES: Final = _json("<tool_call>", end="</tool_call>", call_format=_hermes_grammar("<tool_call>", "</tool_call>"))
_JAMBA: Final = _json("<tool_calls>", body=r"\[", end="</tool_calls>")
_LLAMA_JSON: Final = ToolFormat(
    opening=rf"(?:<\|python_tag\|>\s{{0,64}})?(?=\{{{_CALL_KEYS})", after=r"\s{0,64};", needs_special_tokens=False
)

_GLM: Final = ToolFormat(
    opening=r"<tool_call>\s{0,64}(?P<name>[^<>\s{\[][^<>]{0,127}+)(?=<arg_key>|</tool_call>)",
    read=tagged(
        r"<arg_key>(?P<key>[^<>]{1,128})</arg_key>\s*<arg_value>(?P<value>.*?)(?:</arg_value>|(?=<arg_key>))",
        only_known=True,
    ),
    close="</tool_call>",
)
_PARAMETER: Final = r"<\s*parameter\s*=\s*(?P<key>[^<>]{1,128})>"
_QWEN_XML: Final = ToolFormat(
    opening=r"(?:<tool_call>\s{0,64})?<function=(?P<name>[^<>]{1,128})>",
    read=tagged(rf"{_PARAMETER}\n?(?P<value>.*?)\n?(?:<\s*/\s*parameter\s*>|(?=<\s*parameter\s*=))"),
    close="</function>|(?=</tool_call>)",
    after=r"\s{0,64}</tool_call>",
)
_MIMO: Final = _QWEN_XML._replace(read=tagged(rf"{_PARAMETER}(?P<value>.*?)(?:</parameter>|(?=<\s*parameter\s*=))"))

_PYTHON: Final = ToolFormat(
    opening=r"\s{0,64}(?=\[\s{0,64}[A-Za-z_])",
    read=read_python_calls,
    quotes=("'", '"'),
    stop="",
    must_begin_output=True,
)

_CALL_BEGIN: Final = "<｜tool▁call▁begin｜>"
_CALL_END: Final = "<｜tool▁call▁end｜>"
_SEPARATOR: Final = "<｜tool▁sep｜>"


def _deepseek(*, name: str, begin: str, end: str) -> ToolFormat:
    """Returns a format with the call's name before its arguments. Marks around all calls are dropped."""
    return ToolFormat(
        opening=rf"(?:<｜tool▁calls▁begin｜>\s{{0,16}})?{_CALL_BEGIN}{name}(?={{)",
        after=rf"\s{{0,16}}(?:(?:```)?{_CALL_END}|<｜tool▁calls▁end｜>)",
        call_format=CallFormat(_CALL_BEGIN, (begin,), (end,)),
    )


_BUILT_IN: Final = r"(?:python|browser|container)\b"
_RECIPIENT: Final = rf"\s?to=(?:functions\.)?(?P<name>(?!{_BUILT_IN}|assistant\b)[\w.-]{{1,128}}+)"
_TO_MESSAGE: Final = r"\s?(?:<\|constrain\|>)?\w{0,16}+<\|message\|>"
_GPT_OSS: Final = ReasoningFormat(
    starts=("<|channel|>analysis<|message|>",),
    ends=("<|channel|>final<|message|>", "<|channel|>final <|constrain|>json<|message|>"),
    pauses=("<|end|>", "<|call|>"),
    opening=rf"<\|channel\|>(?:analysis|commentary\s?to={_BUILT_IN})[^<]{{0,64}}+{_TO_MESSAGE}",
    drop=rf"<\|start\|>assistant|<\|channel\|>(?:final|commentary){_TO_MESSAGE}|<\|(?:end|return|call)\|>",
    is_open_at_start=False,
    has_budget=False,
)

TOOL_FORMATS: Final[dict[str, ToolFormat]] = {
    "deepseek_v3": _deepseek(
        name=rf"function{_SEPARATOR}(?P<name>[^<>\n]{{1,128}}+)\n```json\n",
        begin=f"function{_SEPARATOR}NAME\n```json\n",
        end="\n```" + _CALL_END,
    ),
    "deepseek_v31": _deepseek(
        name=rf"(?P<name>[^<>]{{1,128}}+){_SEPARATOR}\s{{0,16}}", begin=f"NAME{_SEPARATOR}", end=_CALL_END
    ),
    "ernie45": _HERMES,
    "functiongemma": ToolFormat(
        opening=r"<start_function_call>call:(?P<name>\w{1,128}+)\{",
        read=tagged(r"(?P<key>\w{1,128}):<escape>(?P<value>.*?)<escape>"),
        close=r"\}?<end_function_call>",
    ),
    "gemma4": ToolFormat(
        opening=r"<\|tool_call>\s{0,16}call:\s{0,16}(?P<name>[^\s<>{}()]{1,128}+)(?=\{)",
        read=read_gemma_call,
        quotes=('<|"|>',),
        stop="<tool_call|>",
        after=r"\s{0,16}<tool_call\|>",
    ),
    "gigachat3": _json("<|function_call|>", "function call<|role_sep|>\n"),
    "glm45": _GLM,
    "glm47": _GLM,
    "granite": _json("<|tool_call|>", "<tool_call>", body=r"\["),
    "granite-20b-fc": _json("<function_call>", needs_special_tokens=False),
    "granite4": _HERMES,
    "hermes": _HERMES,
    "hunyuan_a13b": _JAMBA,
    "internlm": _json("<|action_start|><|plugin|>", end="<|action_end|>"),
    "jamba": _JAMBA,
    "ling3": _GLM,
    "lfm2": _PYTHON._replace(
        opening=r"<\|tool_call_start\|>\s{0,16}(?=\[)",
        after=r"\s{0,64}<\|tool_call_end\|>",
        must_begin_output=False,
    ),
    "llama3_json": _LLAMA_JSON,
    "llama4_json": _LLAMA_JSON,
    "llama4_pythonic": _PYTHON._replace(
        opening=r"\s{0,64}(?:<\|python_start\|>)?(?=\[\s{0,64}[A-Za-z_])",
        after=r"\s{0,64}<\|python_end\|>",
    ),
    "mimo": _MIMO,
    "mistral": ToolFormat(
        opening=r"\[TOOL_CALLS\](?:\s{0,64}(?=\[\s{0,64}[{\]]|\{)"
        r"|(?P<name>[^\[\]{}]{1,128}+)(?:\[CALL_ID\](?P<id>\w{1,64}+))?(?:\[ARGS\]\s{0,16})?(?=\{))",
        stop="[TOOL_CALLS]",
        makes_ids=True,
    ),
    "olmo3": _PYTHON._replace(opening="<function_calls>", close="</function_calls>", must_begin_output=False),
    "openai": ToolFormat(
        opening=rf"(?:{_RECIPIENT}<\|channel\|>(?:commentary|analysis)|"
        rf"<\|channel\|>(?:commentary|analysis){_RECIPIENT}){_TO_MESSAGE}",
        close=r"<\|(?:call|end|return)\|>",
        reasoning=_GPT_OSS,
    ),
    "phi4_mini_json": _json("functools", body=r"\[", needs_special_tokens=False),
    "poolside_v1": _GLM,
    "pythonic": _PYTHON,
    "qwen3_coder": _QWEN_XML,
    "qwen3_json": _HERMES,
    "qwen3_xml": _QWEN_XML,
    "seed_oss": _QWEN_XML._replace(
        opening=_QWEN_XML.opening.replace("tool_call", "seed:tool_call"),
        close="</function>|(?=</seed:tool_call>)",
        after=r"\s{0,64}</seed:tool_call>",
    ),
    "step3p5": _QWEN_XML,
    "xlam": ToolFormat(
        opening=rf"(?:(?:```(?:json)?|\[TOOL_CALLS\]|<tool_call>)\s{{0,64}})?(?=\[\s{{0,64}}\{{{_CALL_KEYS})",
        after=r"\s{0,64}(?:```|</tool_call>)",
        needs_special_tokens=False,
    ),
}
"""Value of `--tool-call-parser` -> format."""

FORCED: Final = ToolFormat(opening=r"(?=\{)", is_forced=True)
"""The text of calls that `tool_choice` forces: an array of `{"name": …, "parameters": …}`."""


def _is_enabled(kwargs: TemplateKwargs) -> bool:
    return bool(kwargs.get("enable_thinking", True))


def _is_asked_for(kwargs: TemplateKwargs) -> bool:
    return bool(kwargs.get("thinking")) or bool(kwargs.get("enable_thinking"))


def _is_not_refused(kwargs: TemplateKwargs) -> bool:
    is_silent = kwargs.get("thinking") is None and kwargs.get("enable_thinking") is None
    return is_silent or _is_asked_for(kwargs)


_TOOL_CALL: Final = ("<tool_call>",)
_THINK: Final = ReasoningFormat()
_STRIPPED: Final = ReasoningFormat(answer_starts=_TOOL_CALL, strips_reasoning=True)
_QWEN3: Final = ReasoningFormat(answer_starts=_TOOL_CALL, is_used=_is_enabled)
_GLM45: Final = _STRIPPED._replace(is_used=_is_not_refused)
_DEEPSEEK_V3: Final = ReasoningFormat(is_used=_is_asked_for)

REASONING_FORMATS: Final[dict[str, ReasoningFormat]] = {
    "deepseek_r1": _THINK,
    "deepseek_v3": _DEEPSEEK_V3,
    "ernie45": ReasoningFormat(strips_answer=True, drop="<response>|</response>"),
    "gemma4": ReasoningFormat(
        starts=("<|channel>",),
        ends=("<channel|>",),
        answer_starts=("<|tool_call>",),
        label="thought\n",
        is_open_at_start=False,
        strips_reasoning=True,
    ),
    "glm45": _GLM45,
    "glm47": _GLM45,
    "granite": ReasoningFormat(
        starts=("Here is my thought process:", "Here's my thought process:"),
        ends=("Here is my response:", "Here's my response:"),
        is_open_at_start=False,
        must_begin_output=True,
    ),
    "granite_thinking_parser": _STRIPPED._replace(strips_answer=True, is_used=_is_enabled),
    "holo2": ReasoningFormat(is_used=_is_not_refused),
    "hunyuan_a13b": ReasoningFormat(
        starts=("<think>\n",), ends=("\n</think>\n<answer>\n",), drop="\n</answer>", is_open_at_start=False
    ),
    "ling3": _GLM45,
    "mimo": _QWEN3,
    "minicpmv": _QWEN3,
    "mistral": ReasoningFormat(
        starts=("[THINK]",),
        ends=("[/THINK]",),
        answer_starts=("[TOOL_CALLS]",),
        is_open_at_start=False,
        strips_reasoning=True,
    ),
    "nemotron_v3": _STRIPPED._replace(is_used=_is_enabled),
    "olmo3": _THINK,
    "openai_gptoss": _GPT_OSS,
    "poolside_v1": _DEEPSEEK_V3,
    "qwen3": _QWEN3,
    "seed_oss": ReasoningFormat(
        starts=("<seed:think>",), ends=("</seed:think>",), answer_starts=("<seed:tool_call>",), is_used=_is_enabled
    ),
    "step3p5": _STRIPPED,
}
"""Value of `--reasoning-parser` -> format."""
