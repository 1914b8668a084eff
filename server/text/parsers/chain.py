"""Parsers for calls that `tool_choice` forces, for reasoning before calls, and for complete answers."""

from collections.abc import Sequence

from server.text.parsers.base import CallArguments, CallStart, Content, Event, OutputParser, Reasoning
from server.text.parsers.json_calls import CallArray, CallStyle
from server.text.parsers.json_text import read_json
from server.text.parsers.text_parser import TextReader, Waiting


class ParserChain:
    """Lets a second parser read the content that the first parser finds. Other events are passed on."""

    def __init__(self, first: OutputParser, second: OutputParser) -> None:
        self._first = first
        self._second = second

    def feed(self, text: str, token_ids: Sequence[int]) -> list[Event]:
        return self._pass_on(self._first.feed(text, token_ids), token_ids)

    def finish(self) -> list[Event]:
        return [*self._pass_on(self._first.finish(), ()), *self._second.finish()]

    def _pass_on(self, events: list[Event], token_ids: Sequence[int]) -> list[Event]:
        passed: list[Event] = []
        for event in events:
            passed += self._second.feed(event.text, token_ids) if isinstance(event, Content) else (event,)
        return passed


class WholeCalls:
    """Turns the whole text into content if the arguments of any call are not JSON.

    A text in which the parser finds reasoning keeps its events, because users must not see reasoning's
    markup.
    """

    def __init__(self, parser: OutputParser) -> None:
        self._parser = parser
        self._text: list[str] = []
        self._events: list[Event] = []

    def feed(self, text: str, token_ids: Sequence[int]) -> list[Event]:
        self._text.append(text)
        self._events += self._parser.feed(text, token_ids)
        return []

    def finish(self) -> list[Event]:
        self._events += self._parser.finish()
        return self._events if self._are_complete() else [Content("".join(self._text))]

    def _are_complete(self) -> bool:
        arguments: list[list[str]] = []
        for event in self._events:
            if isinstance(event, Reasoning):
                return True
            if isinstance(event, CallStart):
                arguments.append([])
            elif isinstance(event, CallArguments):
                arguments[-1].append(event.text)
        return all(_is_json("".join(parts)) for parts in arguments)


def _is_json(text: str) -> bool:
    try:
        read_json(text)
    except ValueError:
        return False
    return True


class NamedCallParser:
    """Reads the whole text as the arguments of one call."""

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
    """Reads the text of forced calls, an array of `{"name": …, "parameters": …}`."""

    def read(self) -> Waiting[None]:
        yield from CallArray(self.text, CallStyle(argument_keys=("parameters",)), self.add_event).read()
        yield from self.text.pass_rest(lambda text: None)
