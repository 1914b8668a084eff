"""`[TOOL_CALLS]NAME[ARGS]{…}` (tokenizers from v11 on) and `[TOOL_CALLS][{"name": …, "arguments": …}, …]`."""

import re
from secrets import choice
from string import ascii_letters, digits
from typing import Final

from server.parsers.events import CallArguments, CallStart, Event, EventBuffer
from server.parsers.json_calls import CallArray, CallObject, CallStyle
from server.parsers.json_value import JsonValueEnd
from server.parsers.marked_calls import CallBody, MarkedCalls
from server.parsers.markers import split_at
from server.parsers.named_arguments import MOST_NAME_CHARS

_MARKER: Final = "[TOOL_CALLS]"
_ID_CHARS: Final = ascii_letters + digits
_ID_LENGTH: Final = 9
_STYLE: Final = CallStyle(unwraps_text=True, may_omit_arguments=True)
_BEFORE_ARGUMENTS: Final = re.compile(r"(?:\[CALL_ID\](?P<id>\w+))?(?:\[ARGS\]|(?=\{))")


class MistralParser(MarkedCalls):
    """The text behind the marker tells which of the two formats it is."""

    markers = {_MARKER: ""}

    def create_body(self) -> CallBody:
        return _MistralCalls()


class _MistralCalls:
    """Gives each call an id with which mistral-common accepts it in a later request."""

    def __init__(self) -> None:
        self._raw = ""
        self._calls: CallArray | CallObject | _NamedCall | None = None

    @property
    def has_started(self) -> bool:
        return self._calls is not None and self._calls.has_started

    @property
    def is_done(self) -> bool:
        return self._calls is not None and self._calls.is_done

    @property
    def raw_text(self) -> str:
        raw = self._raw if self._calls is None or not self._calls.has_started else ""
        return raw if self._calls is None else raw + self._calls.raw_text

    def feed(self, text: str) -> str:
        if self._calls is None:
            bare = text.lstrip()
            self._raw += text[: len(text) - len(bare)]
            if not bare:
                return ""
            text = bare
            self._calls = _reader_of(bare[0])
        return self._calls.feed(text)

    def take_events(self) -> list[Event]:
        events = [] if self._calls is None else self._calls.take_events()
        return [
            event._replace(id=event.id or _make_id()) if isinstance(event, CallStart) else event for event in events
        ]


class _NamedCall(EventBuffer):
    """`NAME[ARGS]{…}`; without `[ARGS]`, the first brace ends the name."""

    def __init__(self) -> None:
        super().__init__()
        self._head = ""
        self._held = ""
        self._value = JsonValueEnd()
        self.has_started = False
        self.is_done = False

    @property
    def raw_text(self) -> str:
        return self._held if self.has_started else self._head

    def feed(self, text: str) -> str:
        if not self.has_started:
            self._head += text
            found = _BEFORE_ARGUMENTS.search(self._head)
            if found is None:
                self.is_done = len(self._head) > MOST_NAME_CHARS
                return ""
            name, text = self._head[: found.start()].strip(), self._head[found.end() :]
            self.has_started = True
            self._events.append(CallStart(name, found["id"]))
        return self._read_arguments(self._held + text)

    def _read_arguments(self, text: str) -> str:
        """Reads up to the end of the value, or to the next call if the value is damaged."""
        before, is_found, rest = split_at(text, _MARKER)
        end = self._value.find(before)
        self.is_done = is_found or end is not None
        if before[:end]:
            self._events.append(CallArguments(before[:end]))
        self._held = "" if self.is_done else rest
        return text[len(before[:end]) :] if self.is_done else ""


def _reader_of(first: str) -> CallArray | CallObject | _NamedCall:
    if first == "[":
        return CallArray(_STYLE)
    return CallObject(_STYLE) if first == "{" else _NamedCall()


def _make_id() -> str:
    return "".join(choice(_ID_CHARS) for _ in range(_ID_LENGTH))
