"""Finds reasoning and tool calls in a model's output, in any format of `formats.py`.

The parser reads the text of one choice while the model generates it. It holds back only text that may be the
beginning of a marker, and calls that are not complete. It reads each character a limited number of times,
wherever the text is cut. Text that is no call, or a malformed call, becomes `Content`. No text raises an
error.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from enum import Enum
from functools import cache
from secrets import choice
from string import ascii_letters, digits
from types import MappingProxyType
from typing import Final, NamedTuple, TypeVar

import regex

from server.text.parsers.call_text import Call, Found, Functions, Schema
from server.text.parsers.formats import ReasoningFormat, ToolFormat, any_of
from server.text.parsers.json_text import is_unicode, read_json


class Reasoning(NamedTuple):
    """Text of the model's reasoning."""

    text: str


class Content(NamedTuple):
    """Text for the user."""

    text: str


class CallStart(NamedTuple):
    """A tool call begins."""

    name: str
    id: str | None = None
    """The call's id. None if the format has no ids. The server then creates an id."""


class CallArguments(NamedTuple):
    """JSON text that continues the arguments of the latest call."""

    text: str


Event = Reasoning | Content | CallStart | CallArguments


class PromptEnd(Enum):
    """Where a prompt ends: within or after reasoning. The parser reads the output accordingly."""

    OPEN = "open"
    """The prompt ends within reasoning."""
    ENDED = "ended"
    """The prompt ends after reasoning, so the output is the answer."""
    SILENT = "silent"
    """The prompt has no marker of reasoning, so `is_open_at_start` decides how the output begins."""


Result = TypeVar("Result")
Waiting = Generator[None, None, Result]
"""A generator that yields whenever it needs more text, and returns its result at the end."""

_MOST_HELD: Final = 1024
"""The length of the longest match. A model's own template may have patterns without a limit."""

_LINE_BREAK: Final = regex.compile("\n")
_INCOMPLETE_CALL: Final = regex.compile(
    r'\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*+")\s*,\s*"parameters"\s*:\s*(?P<arguments>.*)', regex.DOTALL
)
"""A forced call whose end is missing. The grammar of forced calls allows no other order."""


class IncomingText:
    """Text that is read from its beginning, while more text arrives at its end."""

    def __init__(self) -> None:
        self.is_complete = False
        """Whether no more text follows, so that text that was held back can no longer become a match."""
        self._text = ""
        self._position = 0

    def add(self, text: str) -> None:
        self._text = self._text[self._position :] + text
        self._position = 0

    def find(self, pattern: regex.Pattern[str], passed: Callable[[str], None]) -> Waiting[Found | None]:
        """Consumes the text up to and including the first match. Returns None if there is no match.

        `passed` receives the text before the match as it arrives. A match at the end of the text is found
        when more text arrives, because it may become longer.
        """
        while True:
            found = pattern.search(self._text, self._position, partial=not self.is_complete)
            end = len(self._text) if found is None else found.start()
            is_too_long = found is not None and found.end() - end > _MOST_HELD
            end += is_too_long
            if end > self._position:
                passed(self._text[self._position : end])
            self._position = end
            if is_too_long:
                continue
            if found is not None and not found.partial:
                may_go_on = not self.is_complete and found.end() == len(self._text)
                if not may_go_on:
                    self._position = found.end()
                    return found
            if self.is_complete:
                return None
            yield

    def expect(self, pattern: regex.Pattern[str]) -> Waiting[Found | None]:
        """Consumes a match at the current position. If there is none, consumes nothing and returns None."""
        while True:
            found = pattern.match(self._text, self._position, partial=not self.is_complete)
            if found is None:
                return None
            if not found.partial:
                self._position = found.end()
                return found
            yield


class OutputParser:
    """Parses the text of one choice. Runs on the event loop."""

    def __init__(
        self,
        functions: Mapping[str, Schema | None] = MappingProxyType({}),
        *,
        tools: ToolFormat | None = None,
        reasoning: ReasoningFormat | None = None,
        prompt_end: PromptEnd = PromptEnd.SILENT,
        named_function: str | None = None,
    ) -> None:
        """See `Functions`. `named_function` is the function whose arguments are the whole answer."""
        self._functions = Functions(functions)
        self._tools = tools
        self._reasoning = reasoning or (tools.reasoning if tools else None)
        self._prompt_end = prompt_end
        self._named_function = named_function
        self._is_forced = named_function is not None or (tools is not None and tools.is_forced)
        self._may_reason = False
        """Whether a start marker in the answer begins reasoning."""
        self._has_call = False
        self._blanks: list[str] | None = None if tools is None else []
        """White space before or after a call, which is not content. None after other text."""
        self._spaces: list[str] = []
        """White space that is dropped if the reasoning ends after it."""
        self._events: list[Event] = []
        self._text = IncomingText()
        self._reading = self._read()
        next(self._reading)

    def feed(self, text: str) -> list[Event]:
        """Returns the events that the next piece of text completes."""
        self._text.add(text)
        return self._go_on()

    def finish(self) -> list[Event]:
        """Returns the events of the text that was held back. Called once, after the last piece."""
        self._text.is_complete = True
        events = self._go_on()
        if self._blanks and not self._has_call:
            events.append(Content("".join(self._blanks)))
        return events

    def _go_on(self) -> list[Event]:
        next(self._reading, None)
        events, self._events = self._events, []
        return events

    def _read(self) -> Waiting[None]:
        tools = self._tools
        if (yield from self._begins_with_reasoning()):
            yield from self._read_reasoning()
        if tools and tools.must_begin_output and (found := (yield from self._text.expect(_compiled(tools.opening)))):
            yield from self._read_call(found)
        while found := (yield from self._text.find(self._answer_marks(), self._add_content)):
            if found["call"] is not None:
                yield from self._read_call(found)
            elif found["start"] is not None:
                yield from self._read_reasoning()

    def _answer_marks(self) -> regex.Pattern[str]:
        tools = None if self._tools is None or self._tools.must_begin_output else self._tools
        return _answer_marks(tools, self._reasoning, may_reason=self._may_reason)

    def _begins_with_reasoning(self) -> Waiting[bool]:
        reasoning = self._reasoning
        if reasoning is None or self._prompt_end is PromptEnd.ENDED:
            return False
        if self._prompt_end is PromptEnd.OPEN or reasoning.is_open_at_start:
            return True
        if reasoning.must_begin_output:
            return bool((yield from self._text.expect(_compiled(any_of(*reasoning.starts)))))
        self._may_reason = True
        return False

    def _read_reasoning(self) -> Waiting[None]:
        assert (reasoning := self._reasoning) is not None
        if reasoning.label:
            yield from self._text.expect(_compiled(reasoning.label))
        marks = _reasoning_marks(reasoning, drops_answer_starts=self._is_forced)
        while found := (yield from self._text.find(marks, self._add_reasoning)):
            if found.lastgroup == "start":
                continue
            self._may_reason = found.lastgroup == "pause"
            self._spaces.clear()
            while reasoning.strips_answer and (yield from self._text.expect(_LINE_BREAK)):
                pass
            return

    def _read_call(self, opening: Found) -> Waiting[None]:
        assert (tools := self._tools) is not None
        parts: list[str] = []
        end = None
        if tools.close is None:
            yield from self._read_brackets(tools, parts.append)
        else:
            end = yield from self._text.find(_compiled(tools.close), parts.append)
        body = "".join(parts)
        try:
            calls = tools.read(opening, body, self._functions)
        except ValueError:
            text = opening[0] + body + (end[0] if end else "")
            (self._add_incomplete_call if self._is_forced else self._add_content)(text)
            return
        for call in calls:
            self._add_call(call, tools)
        while tools.after and (yield from self._text.expect(_compiled(tools.after))):
            pass

    def _read_brackets(self, tools: ToolFormat, passed: Callable[[str], None]) -> Waiting[None]:
        """Reads to the last bracket of a body, or to a text that it cannot contain."""
        marks, depth = _bracket_marks(tools.quotes, tools.stop), 0
        while found := (yield from self._text.find(marks, passed)):
            mark = found[0]
            passed(mark)
            if mark in tools.quotes:
                yield from self._read_string(mark, passed)
                continue
            depth += 1 if mark in ("(", "[", "{") else -1
            if not mark or depth <= 0:
                return

    def _read_string(self, quote: str, passed: Callable[[str], None]) -> Waiting[None]:
        while found := (yield from self._text.find(_string_marks(quote), passed)):
            passed(found[0])
            if found[0] == quote:
                return

    def _add_reasoning(self, text: str) -> None:
        if self._reasoning is None or not self._reasoning.strips_reasoning:
            self._events.append(Reasoning(text))
            return
        if bare := text.rstrip():
            self._events.append(Reasoning("".join((*self._spaces, bare))))
            self._spaces.clear()
        self._spaces.append(text[len(bare) :])

    def _add_content(self, text: str) -> None:
        if self._named_function is not None:
            if not self._has_call:
                self._has_call = True
                self._events.append(CallStart(self._named_function))
            self._events.append(CallArguments(text))
        elif self._blanks is not None and text.isspace():
            self._blanks.append(text)
        elif not self._is_forced:
            blanks = "".join(self._blanks or ())
            self._events.append(Content(blanks + text))
            self._blanks = None

    def _add_call(self, call: Call, tools: ToolFormat) -> None:
        new_id = "".join(choice(ascii_letters + digits) for _ in range(9)) if tools.makes_ids else None
        self._events += [CallStart(call.name, call.id or new_id), CallArguments(call.arguments)]
        self._has_call, self._blanks = True, []

    def _add_incomplete_call(self, text: str) -> None:
        """Adds the forced call whose end is missing, as the text ends within it."""
        with suppress(ValueError):
            if (found := _INCOMPLETE_CALL.match(text)) and is_unicode(name := read_json(found["name"])):
                self._events += [CallStart(name), CallArguments(found["arguments"])]


@cache
def _compiled(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern, regex.DOTALL)


@cache
def _answer_marks(
    tools: ToolFormat | None, reasoning: ReasoningFormat | None, *, may_reason: bool
) -> regex.Pattern[str]:
    """Returns a pattern that finds a call, the start of reasoning, or text to drop."""
    start = reasoning.opening or any_of(*reasoning.starts) if reasoning and may_reason else "(?!)"
    return _compiled(
        f"(?P<call>{tools.opening if tools else '(?!)'})|(?P<start>{start})"
        f"|(?P<drop>{(reasoning and reasoning.drop) or '(?!)'})"
    )


@cache
def _reasoning_marks(reasoning: ReasoningFormat, *, drops_answer_starts: bool) -> regex.Pattern[str]:
    """Returns a pattern that finds the next marker within reasoning."""
    answer = any_of(*reasoning.answer_starts)
    return _compiled(
        f"(?P<start>{reasoning.opening or any_of(*reasoning.starts)})|(?P<end>{any_of(*reasoning.ends)})"
        f"|(?P<pause>{any_of(*reasoning.pauses)})|(?P<answer>{answer if drops_answer_starts else f'(?={answer})'})"
    )


@cache
def _bracket_marks(quotes: tuple[str, ...], stop: str) -> regex.Pattern[str]:
    round_brackets = "()" if "'" in quotes else ""
    return _compiled(rf"{any_of(*quotes)}|[{{}}\[\]{round_brackets}]|(?={regex.escape(stop) or '(?!)'})")


@cache
def _string_marks(quote: str) -> regex.Pattern[str]:
    return _compiled(rf"\\.|{quote}" if len(quote) == 1 else regex.escape(quote))
