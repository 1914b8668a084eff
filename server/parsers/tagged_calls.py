"""Base of formats in which each call is a JSON object between two markers."""

from collections.abc import Sequence
from typing import ClassVar

from server.parsers.base import FunctionDefinition
from server.parsers.events import Content, Event
from server.parsers.json_calls import ARGUMENTS, CallObject
from server.parsers.markers import split_at


class TaggedCalls:
    """Text around calls is content, except for the blanks behind a call. The end marker may be missing."""

    needs_special_tokens: ClassVar[bool] = True
    start: ClassVar[str]
    end: ClassVar[str]
    argument_keys: ClassVar[Sequence[str]] = ARGUMENTS

    def __init__(self, functions: Sequence[FunctionDefinition]) -> None:
        self._held = ""
        self._call: CallObject | None = None
        self._is_closing = False
        self._is_after_call = False
        self._events: list[Event] = []

    def feed(self, text: str, token_ids: Sequence[int]) -> list[Event]:
        rest: str | None = self._held + text
        self._held = ""
        while rest:
            if self._call is not None:
                rest = self._read_call(rest, self._call)
            elif self._is_closing:
                rest = self._read_end(rest)
            else:
                rest = self._read_text(rest)
        events, self._events = self._events, []
        return events

    def finish(self) -> list[Event]:
        if self._call is not None:
            return [] if self._call.has_started else [Content(self.start + self._call.raw_text)]
        is_framing = self._is_closing or (self._is_after_call and not self._held.strip())
        return [Content(self._held)] if self._held and not is_framing else []

    def _read_text(self, text: str) -> str:
        before, is_found, rest = split_at(text, self.start)
        if self._is_after_call and not before.strip():
            if not is_found:
                self._held = text
                return ""
        elif before:
            self._events.append(Content(before))
            self._is_after_call = False
        if not is_found:
            self._held = rest
            return ""
        self._call = CallObject(self.argument_keys)
        return rest

    def _read_call(self, text: str, call: CallObject) -> str:
        rest = call.feed(text)
        self._events += call.take_events()
        if call.is_done:
            self._call = None
            self._is_closing = self._is_after_call = call.has_started
            if not call.has_started:
                self._events.append(Content(self.start + call.raw_text))
        return rest

    def _read_end(self, text: str) -> str:
        bare = text.lstrip()
        if len(bare) < len(self.end) and self.end.startswith(bare):
            self._held = text
            return ""
        self._is_closing = False
        return bare[len(self.end) :] if bare.startswith(self.end) else text
