"""Calls that a grammar has forced: the format is the server's own, whatever the model's is."""

from collections.abc import Sequence

from server.parsers.events import CallArguments, CallStart, Event
from server.parsers.json_calls import CallArray, CallStyle
from server.parsers.text_parser import TextReader, Waiting


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


class RequiredCallsParser(TextReader):
    """The text is an array of `{"name": …, "parameters": …}`."""

    def read(self) -> Waiting[None]:
        yield from CallArray(self.text, CallStyle(argument_keys=("parameters",)), self.add_event).read()
        yield from self.text.pass_rest(lambda text: None)
