"""Feeds a text to a parser in pieces."""

from collections.abc import Callable, Iterable

from server.parsers.base import CallStart, Event, OutputParser


def parse(parser: OutputParser, pieces: list[str]) -> list[Event]:
    """The events of a text, with adjacent events of a kind joined."""
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
    """The events of the text, which must be the same for all splits in two and for all sizes of pieces.

    Args:
        cuts: the splits in two, if not all.
    """
    events = parse(create(), [text])
    splits = [[text[:cut], text[cut:]] for cut in (range(len(text)) if cuts is None else cuts)]
    sizes = [[text[start : start + size] for start in range(0, len(text), size)] for size in range(1, 9)]
    for pieces in (*splits, *sizes):
        assert parse(create(), pieces) == events, pieces
    return events
