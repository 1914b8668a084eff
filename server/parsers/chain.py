"""Joins a parser of reasoning and a parser of tool calls."""

from collections.abc import Sequence

from server.parsers.base import OutputParser
from server.parsers.events import Content, Event


class ParserChain:
    """The first parser's content is the second parser's text; its other events stay as they are."""

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
