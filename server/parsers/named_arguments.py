"""Reads calls that have their name outside the JSON of the arguments."""

from typing import Final

from server.parsers.events import CallArguments, CallStart, EventBuffer
from server.parsers.markers import split_at

MOST_NAME_CHARS: Final = 512
"""A longer text is not a name; the protocol allows 256 characters."""


class NamedArguments(EventBuffer):
    """`before_name` + `NAME` + `before_arguments` + the arguments' text + `end`."""

    def __init__(self, *, before_arguments: str, end: str, before_name: str = "") -> None:
        super().__init__()
        self._before_name = before_name
        self._before_arguments = before_arguments
        self._end = end
        self._head = ""
        self._held = ""
        self.has_started = False
        self.is_done = False

    @property
    def raw_text(self) -> str:
        return "" if self.has_started else self._head

    def feed(self, text: str) -> str:
        rest = text
        if not self.has_started:
            rest = self._read_head(text)
        return self._read_arguments(rest) if self.has_started else rest

    def _read_head(self, text: str) -> str:
        self._head += text
        head, is_found, rest = split_at(self._head, self._before_arguments)
        name = head.removeprefix(self._before_name)
        if is_found and name.strip() and head.startswith(self._before_name):
            self.has_started = True
            self._events.append(CallStart(name))
            return rest
        if is_found:
            self.is_done, self._head = True, head + self._before_arguments
            return rest
        self.is_done = len(self._head) > MOST_NAME_CHARS
        return ""

    def _read_arguments(self, text: str) -> str:
        arguments, self.is_done, rest = split_at(self._held + text, self._end)
        if arguments:
            self._events.append(CallArguments(arguments))
        self._held = "" if self.is_done else rest
        return rest if self.is_done else ""
