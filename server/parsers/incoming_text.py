"""Text that arrives in pieces, read by a parser as if it were complete."""

from collections.abc import Callable, Generator
from functools import cache
from typing import Final, TypeVar

import regex

Result = TypeVar("Result")
Waiting = Generator[None, None, Result]
"""A step that yields whenever it needs more text."""

Found = regex.Match[str]

BLANKS: Final = regex.compile(r"\s{1,64}")


@cache
def any_of(*texts: str) -> regex.Pattern[str]:
    """Matches the first of these texts that it finds."""
    return regex.compile("|".join(map(regex.escape, texts)))


class IncomingText:
    """Consumed from the front. What may begin a match is held back: patterns must be of bounded length."""

    def __init__(self) -> None:
        self.is_complete = False
        """No more text follows: what was held back cannot become a match any more."""
        self._text = ""
        self._position = 0

    def add(self, text: str) -> None:
        """The next piece."""
        behind = min(self._position, 1)  # for patterns that look at the character before
        self._text = self._text[self._position - behind :] + text
        self._position = behind

    def find(
        self, pattern: regex.Pattern[str], passed: Callable[[str], None], *, keeps_incomplete: bool = True
    ) -> Waiting[Found | None]:
        """Consumes up to the first match, and the match; None at the end of the text.

        `passed` receives the text before the match as it arrives, and, if `keeps_incomplete`, the beginning
        of a match at the end.
        """
        while True:
            found = pattern.search(self._text, self._position, partial=True)
            assert found is not None  # at least the empty text at the end begins a match
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
        """Consumes the text that has arrived, up to a match of `stop`; empty there and at the text's end."""
        while True:
            found = stop.search(self._text, self._position, partial=not self.is_complete) if stop else None
            text = self._text[self._position : found.start() if found else None]
            if text or self.is_complete or (found and not found.partial):
                self._position += len(text)
                return text
            yield

    def give_back(self, text: str) -> None:
        """The end of what was taken is read again."""
        self._position -= len(text)

    def pass_rest(self, passed: Callable[[str], None]) -> Waiting[None]:
        """Consumes all text."""
        while text := (yield from self.take()):
            passed(text)

    def drop_incomplete(self, pattern: regex.Pattern[str]) -> None:
        """At the end of the text, consumes what is only the beginning of a match."""
        if self.is_complete and pattern.match(self._text, self._position, partial=True):
            self._position = len(self._text)

    def expect(self, pattern: regex.Pattern[str]) -> Waiting[Found | None]:
        """Consumes a match that begins here; None, and nothing is consumed, if the text does not match."""
        while True:
            found = pattern.match(self._text, self._position, partial=not self.is_complete)
            if found is None:
                return None
            if not found.partial:
                self._position = found.end()
                return found
            yield

    def expect_all(self, pattern: regex.Pattern[str]) -> Waiting[str]:
        """Consumes all matches that follow each other, from here on."""
        found: list[str] = []
        while match := (yield from self.expect(pattern)):
            found.append(match[0])
        return "".join(found)
