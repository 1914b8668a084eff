"""Reasoning between two tags, which is what almost all formats are."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from server.parsers.base import OutputParser, PromptEnd
from server.parsers.events import Content, Event, EventBuffer, Reasoning
from server.parsers.markers import partial_length

TemplateKwargs = Mapping[str, Any]


def _always(kwargs: TemplateKwargs) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class TagFormat:
    """A `ReasoningFormat` of tags, with vLLM's rules for them."""

    starts: tuple[str, ...] = ("<think>",)
    """The texts that begin the reasoning, the usual one first."""
    ends: tuple[str, ...] = ("</think>",)
    """The texts that end it, the usual one first."""
    answer_starts: tuple[str, ...] = ()
    """Tags of tool calls, which end the reasoning as well and belong to the answer."""
    label: str = ""
    """Text that may follow the start and is dropped."""
    is_open_at_start: bool = True
    """Whether the output begins with reasoning where neither prompt nor output have the start tag."""
    must_begin_output: bool = False
    """Whether the start tag has its meaning only as the first text of the output."""
    is_content: bool = False
    """Whether the reasoning is shown as content, with its start tag."""
    strips_reasoning: bool = False
    """Whether white space at the reasoning's end is dropped."""
    strips_answer: bool = False
    """Whether line breaks at the answer's beginning are dropped."""
    answer_tags: tuple[str, str] | None = None
    """Tags around the answer, which are dropped; the first is optional and may be empty."""
    switch: Callable[[TemplateKwargs], bool] = _always
    """Whether the model reasons with these variables of its chat template."""

    pauses: ClassVar[tuple[str, ...]] = ()
    parses_calls: ClassVar[bool] = False

    @property
    def forced_end(self) -> str:
        """The usual end."""
        return self.ends[0]

    def is_used(self, template_kwargs: TemplateKwargs) -> bool:
        return self.switch(template_kwargs)

    def create_parser(self, prompt_end: PromptEnd, *, drops_answer_starts: bool = False) -> OutputParser:
        if self.is_content:
            return _ContentParser("" if prompt_end is PromptEnd.ENDED else self.starts[0])
        return TagParser(self, prompt_end, drops_answer_starts=drops_answer_starts)

    @cached_property
    def all_tags(self) -> tuple[str, ...]:
        """The tags that have a meaning within reasoning."""
        return self.starts + self.ends + self.answer_starts

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Finds the first of `all_tags`."""
        return re.compile("|".join(map(re.escape, self.all_tags)))


class TagParser(EventBuffer):
    """Splits one output into reasoning and answer."""

    def __init__(self, tags: TagFormat, prompt_end: PromptEnd, *, drops_answer_starts: bool = False) -> None:
        super().__init__()
        self._tags = tags
        self._drops_answer_starts = drops_answer_starts
        self._held = ""
        """Text that the next piece may turn into a tag."""
        self._spaces: list[str] = []
        """White space of the reasoning that is dropped if nothing but the end follows."""
        self._read: Callable[[], bool] = self._read_before_reasoning
        """Reads some of the held text; False if the rest needs the next piece."""
        if prompt_end is PromptEnd.ENDED:
            self._read = self._read_answer
        elif prompt_end is PromptEnd.OPEN or tags.is_open_at_start:
            self._read = self._read_label

    def feed(self, text: str, token_ids: Sequence[int]) -> list[Event]:
        self._held += text
        while self._held and self._read():
            pass
        return self.take_events()

    def finish(self) -> list[Event]:
        held, self._held = self._held, ""
        if self._read in (self._read_label, self._read_reasoning):
            self._add_reasoning(held)
        else:
            self._add_content(held)
        return self.take_events()

    def _read_before_reasoning(self) -> bool:
        if self._tags.must_begin_output:
            return self._read_first_text()
        held = self._held
        starts = [(held.find(start), start) for start in self._tags.starts if start in held]
        if starts:
            begin, start = min(starts)
            self._add_content(held[:begin])
            self._held = held[begin + len(start) :]
            self._read = self._read_label
            return True
        self._held = _end_of(held, self._tags.starts)
        self._add_content(held.removesuffix(self._held))
        return False

    def _read_first_text(self) -> bool:
        for start in self._tags.starts:
            if self._held.startswith(start):
                self._held = self._held.removeprefix(start)
                self._read = self._read_reasoning
                return True
        if any(start.startswith(self._held) for start in self._tags.starts):
            return False
        self._read = self._read_answer
        return True

    def _read_label(self) -> bool:
        return self._drop_or_wait(self._tags.label, then=self._read_reasoning)

    def _read_reasoning(self) -> bool:
        tags, held = self._tags, self._held
        match = tags.pattern.search(held)
        if match is None:
            self._held = _end_of(held, tags.all_tags)
            self._add_reasoning(held.removesuffix(self._held))
            return False
        self._add_reasoning(held[: match.start()])
        if match[0] in tags.answer_starts:
            self._held = held[match.end() if self._drops_answer_starts else match.start() :]
            self._read = self._read_answer
        else:
            self._held = held[match.end() :]
            if match[0] in tags.ends:
                self._read = self._read_answer_start
        return True

    def _read_answer_start(self) -> bool:
        if self._tags.strips_answer and not self._drop_line_breaks():
            return False
        return self._drop_or_wait(self._tags.answer_tags[0] if self._tags.answer_tags else "", then=self._read_answer)

    def _drop_or_wait(self, text: str, *, then: Callable[[], bool]) -> bool:
        """Drops a text at the beginning of the held one; False if it is not complete yet."""
        if len(self._held) < len(text) and text.startswith(self._held):
            return False
        self._held = self._held.removeprefix(text)
        self._read = then
        return True

    def _read_answer(self) -> bool:
        held = self._held
        if self._tags.answer_tags is None:
            self._read = self._read_rest
            return True
        content, end, rest = held.partition(self._tags.answer_tags[1])
        if end:
            self._add_content(content)
            self._held = rest
            self._read = self._read_after_answer
            return True
        self._held = _end_of(held, self._tags.answer_tags[1:])
        self._add_content(held.removesuffix(self._held))
        return False

    def _read_after_answer(self) -> bool:
        if not self._drop_line_breaks():
            return False
        self._read = self._read_rest
        return True

    def _read_rest(self) -> bool:
        self._add_content(self._held)
        self._held = ""
        return False

    def _drop_line_breaks(self) -> bool:
        """Drops line breaks at the beginning of the held text; whether other text follows."""
        self._held = self._held.lstrip("\n")
        return bool(self._held)

    def _add_reasoning(self, text: str) -> None:
        if self._tags.strips_reasoning:
            bare = text.rstrip()
            spaces = text[len(bare) :]
            text = "".join((*self._spaces, bare)) if bare else ""
            if bare:
                self._spaces.clear()
            self._spaces.append(spaces)
        if text:
            self._events.append(Reasoning(text))

    def _add_content(self, text: str) -> None:
        if text:
            self._events.append(Content(text))


class _ContentParser:
    """All text is content, after a text of its own."""

    def __init__(self, begin: str) -> None:
        self._begin = begin

    def feed(self, text: str, token_ids: Sequence[int]) -> list[Event]:
        text, self._begin = self._begin + text, ""
        return [Content(text)] if text else []

    def finish(self) -> list[Event]:
        return []


def _end_of(text: str, tags: Sequence[str]) -> str:
    """The longest end of the text that begins one of the tags."""
    length = max(partial_length(text, tag) for tag in tags)
    return text[len(text) - length :]
