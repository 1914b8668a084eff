"""Text that arrives in pieces, read by a parser as if it were complete."""

from collections.abc import Callable, Generator
from typing import TypeVar

import regex

Result = TypeVar("Result")
Waiting = Generator[None, None, Result]
"""A step that yields whenever it needs more text."""

Found = regex.Match[str]


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

    def pass_rest(self, passed: Callable[[str], None]) -> Waiting[None]:
        """Consumes all text."""
        while not self.is_complete or self._position < len(self._text):
            if self._position < len(self._text):
                passed(self._text[self._position :])
                self._position = len(self._text)
            else:
                yield

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
