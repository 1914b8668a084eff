"""The formats of reasoning between two tags. Their names, tags and rules come from vLLM 0.32."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Final

import regex

from server.text.parsers.base import Content, OutputParser, PromptEnd, Reasoning
from server.text.parsers.text_parser import TextReader, Waiting, any_of

TemplateKwargs = Mapping[str, Any]

_LINE_BREAKS: Final = regex.compile(r"\n{1,64}")


def _always(kwargs: TemplateKwargs) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class TagFormat:
    """A `ReasoningFormat` with a start tag and an end tag, and vLLM's rules for them."""

    starts: tuple[str, ...] = ("<think>",)
    ends: tuple[str, ...] = ("</think>",)
    answer_starts: tuple[str, ...] = ()
    """Tags of tool calls, which also end the reasoning. They belong to the answer."""
    label: str = ""
    """Text that is dropped if it follows the start tag."""
    is_open_at_start: bool = True
    must_begin_output: bool = False
    """Whether the start tag counts only at the beginning of the output."""
    strips_reasoning: bool = False
    """Whether white space at the end of the reasoning is dropped."""
    strips_answer: bool = False
    """Whether line breaks at the beginning of the answer are dropped."""
    answer_tags: tuple[str, str] | None = None
    """Tags around the answer, which are dropped. The first tag may be missing in a text, or may be empty."""
    switch: Callable[[TemplateKwargs], bool] = _always
    """Implements `is_used`."""

    pauses: ClassVar[tuple[str, ...]] = ()
    parses_calls: ClassVar[bool] = False

    @property
    def forced_end(self) -> str:
        return self.ends[0]

    def is_used(self, template_kwargs: TemplateKwargs) -> bool:
        return self.switch(template_kwargs)

    def create_parser(self, prompt_end: PromptEnd, *, drops_answer_starts: bool = False) -> OutputParser:
        return TagParser(self, prompt_end, drops_answer_starts=drops_answer_starts)


class TagParser(TextReader):
    """Splits one output into reasoning and answer."""

    def __init__(self, tags: TagFormat, prompt_end: PromptEnd, *, drops_answer_starts: bool = False) -> None:
        self._tags = tags
        self._prompt_end = prompt_end
        self._marks = marks(tags, drops_answer_starts=drops_answer_starts)
        self._spaces: list[str] = []
        """White space that is dropped if the reasoning ends after it."""
        super().__init__()

    def read(self) -> Waiting[None]:
        if (yield from self._read_start()):
            yield from self._read_reasoning()
        if self._tags.answer_tags is not None:
            yield from self.text.find(any_of(self._tags.answer_tags[1]), self._add_content)
            yield from self._drop_line_breaks()
        yield from self.text.pass_rest(self._add_content)

    def _read_start(self) -> Waiting[bool]:
        """Reads the start tag. Returns whether reasoning follows."""
        tags = self._tags
        if self._prompt_end is PromptEnd.ENDED:
            return False
        if self._prompt_end is PromptEnd.SILENT and not tags.is_open_at_start:
            start = any_of(*tags.starts)
            if tags.must_begin_output:
                found = yield from self.text.expect(start)
            else:
                found = yield from self.text.find(start, self._add_content)
            if found is None:
                return False
        if tags.label:
            yield from self.text.expect(any_of(tags.label))
        return True

    def _read_reasoning(self) -> Waiting[None]:
        while found := (yield from self.text.find(self._marks, self._add_reasoning)):
            if found.lastgroup == "end":
                if self._tags.strips_answer:
                    yield from self._drop_line_breaks()
                if self._tags.answer_tags and self._tags.answer_tags[0]:
                    yield from self.text.expect(any_of(self._tags.answer_tags[0]))
                return
            if found.lastgroup == "answer":
                return

    def _drop_line_breaks(self) -> Waiting[None]:
        while (yield from self.text.expect(_LINE_BREAKS)):
            pass

    def _add_reasoning(self, text: str) -> None:
        if self._tags.strips_reasoning:
            bare = text.rstrip()
            spaces = text[len(bare) :]
            text = "".join((*self._spaces, bare)) if bare else ""
            if bare:
                self._spaces.clear()
            self._spaces.append(spaces)
        self.add_text(Reasoning(text))

    def _add_content(self, text: str) -> None:
        self.add_text(Content(text))


@cache
def marks(tags: TagFormat, *, drops_answer_starts: bool) -> regex.Pattern[str]:
    """Returns a pattern that finds the next tag within reasoning.

    The group `end` matches an end tag. The group `answer` matches a tag that begins the answer. A start tag
    matches without a group, and is dropped.
    """
    alternatives = [any_of(*tags.starts).pattern, f"(?P<end>{any_of(*tags.ends).pattern})"]
    if tags.answer_starts:
        answer = any_of(*tags.answer_starts).pattern
        alternatives.append(f"(?P<answer>{answer if drops_answer_starts else f'(?={answer})'})")
    return regex.compile("|".join(alternatives))


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
