"""Base classes of parsers. Text arrives in pieces, but a parser is written as if the text were complete."""

from collections.abc import Callable, Generator, Sequence
from functools import cache
from typing import ClassVar, Final, TypeVar

import regex

from server.text.parsers.base import CallArguments, CallFormat, CallStart, Content, Event, Reasoning

Result = TypeVar("Result")
Waiting = Generator[None, None, Result]
"""A generator that yields whenever it needs more text, and returns its result at the end."""

Found = regex.Match[str]

BLANKS: Final = regex.compile(r"\s{1,64}")


@cache
def any_of(*texts: str) -> regex.Pattern[str]:
    """Returns a pattern that matches any of these texts."""
    return regex.compile("|".join(map(regex.escape, texts)))


class IncomingText:
    """Text that is read from its beginning, while more text arrives at its end.

    Text that may become a match is held back, so the length of a pattern's matches must be limited.
    """

    def __init__(self) -> None:
        self.is_complete = False
        """Whether no more text follows, so that text that was held back can no longer become a match."""
        self._text = ""
        self._position = 0

    def add(self, text: str) -> None:
        behind = min(self._position, 1)  # some patterns look at the character before
        self._text = self._text[self._position - behind :] + text
        self._position = behind

    def find(
        self, pattern: regex.Pattern[str], passed: Callable[[str], None], *, keeps_incomplete: bool = True
    ) -> Waiting[Found | None]:
        """Consumes the text up to and including the first match. Returns None if there is no match.

        `passed` receives the text before the match as it arrives. If the text ends within a match,
        `keeps_incomplete` decides whether `passed` receives the incomplete match, or whether it is dropped.
        """
        while True:
            found = pattern.search(self._text, self._position, partial=True)
            assert found is not None  # the empty text at the end begins a match, if nothing else does
            end = len(self._text) if self.is_complete and found.partial and keeps_incomplete else found.start()
            if end > self._position:
                passed(self._text[self._position : end])
            self._position = end
            if not found.partial:
                self._position = found.end()
                return found
            if self.is_complete:
                self._position = len(self._text)
                return None
            yield

    def take(self, stop: regex.Pattern[str] | None = None) -> Waiting[str]:
        """Consumes and returns the text that has arrived, up to a match of `stop`.

        Returns an empty text if the match comes next, or at the end of the text.
        """
        while True:
            found = stop.search(self._text, self._position, partial=not self.is_complete) if stop else None
            text = self._text[self._position : found.start() if found else None]
            if text or self.is_complete or (found and not found.partial):
                self._position += len(text)
                return text
            yield

    def give_back(self, text: str) -> None:
        """Puts the end of the taken text back, so that it is read again."""
        self._position -= len(text)

    def pass_rest(self, passed: Callable[[str], None]) -> Waiting[None]:
        """Consumes the rest of the text, and calls `passed` with it."""
        while text := (yield from self.take()):
            passed(text)

    def drop_incomplete(self, pattern: regex.Pattern[str]) -> None:
        """Once the text is complete, drops the rest if it begins with a match or is the start of one."""
        if self.is_complete and pattern.match(self._text, self._position, partial=True):
            self._position = len(self._text)

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

    def expect_all(self, pattern: regex.Pattern[str]) -> Waiting[str]:
        """Consumes and returns all matches that follow one another without a gap."""
        found: list[str] = []
        while match := (yield from self.expect(pattern)):
            found.append(match[0])
        return "".join(found)


class TextReader:
    """Runs the generator `read` whenever text arrives. `read` consumes `self.text` and adds events."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self.text = IncomingText()
        self._reading = self.read()
        next(self._reading)

    def read(self) -> Waiting[None]:
        raise NotImplementedError

    def feed(self, text: str, token_ids: Sequence[int]) -> list[Event]:
        self.text.add(text)
        return self._go_on()

    def finish(self) -> list[Event]:
        self.text.is_complete = True
        return self._go_on()

    def _go_on(self) -> list[Event]:
        next(self._reading, None)
        events, self._events = self._events, []
        return events

    def add_event(self, event: Event) -> None:
        """Adds an event that is not joined to an adjacent event."""
        self._events.append(event)

    def add_text(self, event: Reasoning | Content | CallArguments) -> None:
        """Adds text, joined to adjacent text of the same kind."""
        last = self._events[-1] if self._events else None
        if type(last) is type(event):
            self._events[-1] = type(event)(last.text + event.text)
        elif event.text:
            self._events.append(event)


class TextParser(TextReader):
    """The base of tool parsers. Their `read` passes content and calls to the methods below."""

    needs_special_tokens: ClassVar[bool] = True
    call_format: ClassVar[CallFormat | None] = None

    def __init__(self) -> None:
        self.num_calls = 0
        self._is_blank = True
        """Whether the content so far is only white space."""
        self._blanks: list[str] = []
        """White space before any other content. It is dropped if a call comes first."""
        super().__init__()

    def finish(self) -> list[Event]:
        events = super().finish()
        return [*events, Content(blanks)] if (blanks := "".join(self._blanks)) else events

    def add_content(self, text: str) -> None:
        """Adds text for the user. White space alone is not content if there are calls."""
        if self._is_blank:
            text = text.lstrip() if self.num_calls else text
            self._is_blank = not text.strip()
            self._blanks.append(text)
            if self._is_blank:
                return
            text = "".join(self._blanks)
            self._blanks.clear()
        self.add_text(Content(text))

    def start_call(self, name: str) -> None:
        self.num_calls += 1
        self._blanks.clear()
        self.add_event(CallStart(name))

    def add_arguments(self, text: str) -> None:
        self.add_text(CallArguments(text))


class StrayText:
    """Called with text where the format allows only white space. Any other text becomes content."""

    def __init__(self, parser: TextParser) -> None:
        self._parser = parser
        self._is_blank = True

    def __call__(self, text: str) -> None:
        if self._is_blank:
            text = text.lstrip()
            self._is_blank = not text
        if text:
            self._parser.add_content(text)
