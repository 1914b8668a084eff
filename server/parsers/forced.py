"""Calls that a grammar has forced: the format is the server's own, whatever the model's is."""

from collections.abc import Sequence

from server.parsers.events import CallArguments, CallStart, Event
from server.parsers.json_calls import CallArray, CallStyle


class NamedCallParser:
    """The whole text is the arguments of one call."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._has_started = False

    def feed(self, text: str, token_ids: Sequence[int]) -> list[Event]:
        if not text:
            return []
        if self._has_started:
            return [CallArguments(text)]
        self._has_started = True
        return [CallStart(self._name), CallArguments(text)]

    def finish(self) -> list[Event]:
        return []


class RequiredCallsParser:
    """The text is an array of `{"name": …, "parameters": …}`."""

    def __init__(self) -> None:
        self._array = CallArray(CallStyle(argument_keys=("parameters",)))

    def feed(self, text: str, token_ids: Sequence[int]) -> list[Event]:
        self._array.feed(text)
        return self._array.take_events()

    def finish(self) -> list[Event]:
        return []
