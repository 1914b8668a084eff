"""The results of parsers for a text, whole or in pieces, and their comparison."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

from server.text.parsers.base import CallArguments, CallStart, Content, Event, OutputParser, Reasoning
from server.text.parsers.registry import load_tool_parser
from tests.server.text.parsers.raw_texts import FUNCTIONS, Format

DEFINITIONS: Final = [SimpleNamespace(**function) for function in FUNCTIONS]


@dataclass
class ParsedCall:
    """A call, with its arguments as text."""

    name: str
    arguments: str = ""
    id: str | None = None

    @property
    def meaning(self) -> tuple[str, str]:
        """Name and arguments in a form that is equal if the arguments are the same JSON."""
        try:
            return self.name, json.dumps(json.loads(self.arguments, parse_float=_number), sort_keys=True)
        except ValueError:
            return self.name, self.arguments


@dataclass
class Parsed:
    """A result for one text."""

    content: str = ""
    calls: list[ParsedCall] = field(default_factory=list)
    reasoning: str = ""

    @property
    def meaning(self) -> tuple[str, str, list[tuple[str, str]]]:
        """The parts that must be equal. If there are calls, blanks around the content do not count."""
        content = self.content.strip() if self.calls else self.content
        return self.reasoning, content, [call.meaning for call in self.calls]


def _number(text: str) -> float | int:
    """Parses a JSON number. 12.0 becomes 12."""
    number = float(text)
    return int(number) if number.is_integer() else number


def parsed_by_vllm(answer: dict[str, Any]) -> Parsed:
    """Converts a result of `vllm_parsers.py`. An error becomes a result without calls."""
    if "error" in answer:
        return Parsed(answer["error"])
    calls = [ParsedCall(call["name"] or "", call["arguments"] or "", call["id"]) for call in answer["calls"]]
    return Parsed(answer["content"], calls, answer["reasoning"])


def parse(form: Format, pieces: Iterable[str]) -> Parsed:
    """Parses a text in pieces with our parser."""
    parser = load_tool_parser(form.name)(DEFINITIONS)
    events = [event for piece in pieces for event in parser.feed(piece, form.tokenize(piece))]
    return join([*events, *parser.finish()])


def join(events: Iterable[Event]) -> Parsed:
    """Joins events to a result, as a client does."""
    parsed = Parsed()
    for event in events:
        if isinstance(event, Content):
            parsed.content += event.text
        elif isinstance(event, Reasoning):
            parsed.reasoning += event.text
        elif isinstance(event, CallStart):
            parsed.calls.append(ParsedCall(event.name, id=event.id))
        elif isinstance(event, CallArguments):
            parsed.calls[-1].arguments += event.text
    return parsed


def joined_events(parser: OutputParser, pieces: list[str]) -> list[Event]:
    """The parser's events for a text. Adjacent events of a kind are joined."""
    joined: list[Event] = []
    for event in [*(event for piece in pieces for event in parser.feed(piece, ())), *parser.finish()]:
        last = joined[-1] if joined else None
        if isinstance(event, CallStart) or isinstance(last, CallStart) or type(last) is not type(event):
            joined.append(event)
        else:
            joined[-1] = event._replace(text=last.text + event.text)
    return joined


def parse_at_all_splits(
    create: Callable[[], OutputParser], text: str, cuts: Iterable[int] | None = None
) -> list[Event]:
    """The events of the text. Checks that they are equal for all splits in two and for pieces of all sizes.

    Args:
        cuts: the positions of the splits in two. None means all positions.
    """
    events = joined_events(create(), [text])
    splits = [[text[:cut], text[cut:]] for cut in (range(len(text)) if cuts is None else cuts)]
    sizes = [[text[start : start + size] for start in range(0, len(text), size)] for size in range(1, 9)]
    for pieces in (*splits, *sizes):
        assert joined_events(create(), pieces) == events, pieces
    return events
