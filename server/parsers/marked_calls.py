"""Base of formats in which a marker tells that calls follow."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import ClassVar, NamedTuple, Protocol

from server.parsers.base import CallFormat, FunctionDefinition
from server.parsers.events import Content, Event, EventBuffer
from server.parsers.json_calls import CallArray, CallObject, CallStyle
from server.parsers.markers import partial_length


class CallBody(Protocol):
    """Reads what follows a marker: one call or several, see `CallObject`."""

    @property
    def has_started(self) -> bool:
        """Whether a call has started."""

    @property
    def is_done(self) -> bool:
        """Whether the calls are complete, or the text cannot be a call."""

    @property
    def raw_text(self) -> str:
        """The text that has been read and is no part of a call."""

    def feed(self, text: str) -> str:
        """Reads the next piece; returns the text behind the body once it is done."""

    def take_events(self) -> list[Event]:
        """The events since the last call of this method."""


class _Opening(NamedTuple):
    before: str
    start: str | None
    """The marker that was found."""
    rest: str


class MarkedCalls(EventBuffer):
    """Text around calls is content, except for blanks behind a call. An end marker may be missing.

    A subclass defines its markers and the reader of what follows them.
    """

    needs_special_tokens: ClassVar[bool] = True
    call_format: ClassVar[CallFormat | None] = None
    markers: ClassVar[Mapping[str, str]]
    """Start marker -> end marker, empty if there is none. Of two that begin alike the longer comes first."""
    bare_starts: ClassVar[str] = ""
    """Characters with which calls may begin without a marker."""
    separators: ClassVar[str] = ""
    """Characters that are dropped behind a call, as are blanks."""

    def __init__(self, functions: Sequence[FunctionDefinition]) -> None:
        super().__init__()
        self._held = ""
        self._start = ""
        self._body: CallBody | None = None
        self._is_closing = False
        self._is_after_call = False
        self._gap: list[str] = []

    def create_body(self) -> CallBody:
        """The reader of what follows a marker."""
        raise NotImplementedError

    def feed(self, text: str, token_ids: Sequence[int]) -> list[Event]:
        rest = self._held + text
        self._held = ""
        while rest:
            if self._body is not None:
                rest = self._read_body(rest, self._body)
            elif self._is_closing:
                rest = self._read_end(rest)
            else:
                rest = self._read_text(rest)
        return self.take_events()

    def finish(self) -> list[Event]:
        if self._body is not None:
            text = self._lost_text(self._body)
        elif self._is_closing or not self._held:
            text = ""
        else:
            text = "".join(self._gap) + self._held
        return [Content(text)] if text else []

    def _read_text(self, text: str) -> str:
        if self._is_after_call:
            text = self._skip_gap(text)
        opening = self._find_start(text)
        if opening.before:
            self._events.append(Content("".join(self._gap) + opening.before))
            self._is_after_call = False
            self._gap.clear()
        if opening.start is None:
            self._held = opening.rest
            return ""
        self._start, self._body = opening.start, self.create_body()
        self._gap.clear()
        return opening.rest

    def _skip_gap(self, text: str) -> str:
        """Keeps blanks and separators behind a call until it is known whether another call follows."""
        rest = text.lstrip(self.separators + " \t\r\n")
        self._gap.append(text[: len(text) - len(rest)])
        return rest

    def _find_start(self, text: str) -> _Opening:
        found = _start_pattern(tuple(self.markers), self.bare_starts).search(text)
        if found is None:
            cut = len(text) - max((partial_length(text, start) for start in self.markers), default=0)
        elif any(start.startswith(text[found.start() :]) for start in self.markers if start != found[0]):
            cut = found.start()  # a longer marker may follow
        else:
            return _Opening(text[: found.start()], found[0], text[found.end() :])
        return _Opening(text[:cut], None, text[cut:])

    def _read_body(self, text: str, body: CallBody) -> str:
        rest = body.feed(text)
        events = body.take_events()
        if body.is_done:
            self._body = None
            self._is_after_call = body.has_started
            self._is_closing = body.has_started and bool(self.markers.get(self._start))
            if lost := self._lost_text(body):
                events.append(Content(lost))
        self._events += events
        return rest

    def _lost_text(self, body: CallBody) -> str:
        """The text of a body that turned out to be no call, or whose end is missing."""
        return body.raw_text if body.has_started else self._start + body.raw_text

    def _read_end(self, text: str) -> str:
        end, bare = self.markers[self._start], text.lstrip()
        if len(bare) < len(end) and end.startswith(bare):
            self._held = text
            return ""
        self._is_closing = False
        return bare[len(end) :] if bare.startswith(end) else text


class MarkedObjects(MarkedCalls):
    """Each marker is followed by one call."""

    style: ClassVar[CallStyle] = CallStyle()

    def create_body(self) -> CallBody:
        return CallObject(self.style)


class MarkedArray(MarkedCalls):
    """The marker is followed by a list of calls."""

    style: ClassVar[CallStyle] = CallStyle()

    def create_body(self) -> CallBody:
        return CallArray(self.style)


@cache
def _start_pattern(starts: tuple[str, ...], bare_starts: str) -> re.Pattern[str]:
    alternatives = [re.escape(start) for start in starts]
    if bare_starts:
        alternatives.append(f"(?=[{re.escape(bare_starts)}])")
    return re.compile("|".join(alternatives))
