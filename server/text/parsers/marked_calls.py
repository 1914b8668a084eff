"""Base of formats in which a marker announces calls."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import ClassVar

import regex

from server.text.parsers.base import CallFormat, Content, FunctionSignature
from server.text.parsers.json_calls import CallArray, CallObject, CallReader, CallStyle
from server.text.parsers.text_parser import BLANKS, TextReader, Waiting, any_of


class MarkedCalls(TextReader):
    """Each marker is followed by one call, a JSON object in `style`; a subclass may read something else.

    Text around calls is content, except for blanks behind a call. An end marker may be missing.
    """

    needs_special_tokens: ClassVar[bool] = True
    call_format: ClassVar[CallFormat | None] = None
    markers: ClassVar[Mapping[str, str]]
    """Start marker -> end marker, empty if there is none."""
    bare_starts: ClassVar[str] = ""
    """Characters with which calls may begin without a marker."""
    separators: ClassVar[str] = ""
    """Characters that are dropped behind a call, as are blanks."""
    style: ClassVar[CallStyle] = CallStyle()

    def __init__(self, functions: Sequence[FunctionSignature]) -> None:
        self._gap = ""
        """Blanks and separators behind a call; content if text follows them."""
        super().__init__()

    def read(self) -> Waiting[None]:
        """Content, and the calls behind each marker."""
        while opening := (yield from self.text.find(start_pattern(*self.markers, bare=self.bare_starts), self.pass_on)):
            start = yield from self._read_longer(opening[0])
            self._gap = ""
            if (yield from self.read_calls(start)):
                yield from self._read_gap(self.markers.get(start, ""))

    def read_calls(self, start: str) -> Waiting[bool]:
        """Reads what follows the marker `start`; returns whether a call has started."""
        return (yield from self.read_body(CallObject, self.style, start))

    def read_body(self, reader: type[CallReader], style: CallStyle, start: str) -> Waiting[bool]:
        """Reads calls with `reader`. Text that is no call becomes content, with `start`."""
        body = reader(self.text, style, self.add_event)
        yield from body.read()
        if not body.has_started:
            self.pass_on(start + body.raw_text)
        return body.has_started

    def pass_on(self, text: str) -> None:
        """Adds text that is no call."""
        if text:
            self.add_text(Content(self._gap + text))
            self._gap = ""

    def _read_longer(self, start: str) -> Waiting[str]:
        """The longest marker that begins with the one that was found."""
        for longer in self.markers:
            is_longer = bool(start) and longer != start and longer.startswith(start)
            if is_longer and (yield from self.text.expect(any_of(longer[len(start) :]))):
                return longer
        return start

    def _read_gap(self, end: str) -> Waiting[None]:
        """Reads blanks, the end marker and separators."""
        gap = yield from self.text.expect_all(BLANKS)
        if end and (yield from self.text.expect(any_of(end))):
            gap = ""
        self._gap = gap + (yield from self.text.expect_all(_characters(self.separators + " \t\r\n")))


class MarkedArray(MarkedCalls):
    """The marker is followed by a list of calls."""

    def read_calls(self, start: str) -> Waiting[bool]:
        return (yield from self.read_body(CallArray, self.style, start))


@cache
def start_pattern(*starts: str, bare: str = "") -> regex.Pattern[str]:
    """Finds the first marker, or one of the characters `bare`, which is not consumed."""
    markers = any_of(*starts)
    return regex.compile(f"{markers.pattern}|(?=[{regex.escape(bare)}])") if bare else markers


@cache
def _characters(characters: str) -> regex.Pattern[str]:
    return regex.compile(f"[{regex.escape(characters)}]{{1,64}}")
