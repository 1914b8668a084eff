"""Finds stop strings in a text that arrives in pieces."""

from collections.abc import Iterable
from typing import NamedTuple

MAX_STOP_CHARS = 1024
"""Of all stop strings of a request: what a piece of text costs at most grows with them."""


class TextDelta(NamedTuple):
    """The text that some tokens added, as far as it may be sent."""

    text: str
    stop: str | None = None
    """The stop string that ended the output."""


class StopScanner:
    """Holds back text that may be the beginning of a stop string, and cuts the text at a complete one.

    One scanner serves one output, on one thread.
    """

    def __init__(self, stops: Iterable[str], include_in_output: bool = False) -> None:
        self._stops = [stop for stop in stops if stop]
        self._include = include_in_output
        self._begun = ""
        """The end of the text as far as it may begin a stop string; held back unless those are included."""

    def scan(self, piece: str, can_stop: bool = True) -> TextDelta:
        """Scans the next piece; with `can_stop` false, stop strings that end in it are ignored."""
        num_begun = len(self._begun)
        start = num_begun if self._include else 0
        text = self._begun + piece
        ends = [(end, stop) for stop in self._stops if (end := _end_of(stop, text, num_begun)) >= 0] if can_stop else []
        if ends:
            end, stop = min(ends, key=lambda found: found[0])
            return TextDelta(text[start : end if self._include else end - len(stop)], stop)
        num_begun = max((_num_begun(stop, text) for stop in self._stops), default=0)
        self._begun = text[len(text) - num_begun :]
        return TextDelta(text[start : len(text) if self._include else len(text) - num_begun])

    def release(self) -> str:
        """Returns the held-back text at the end of the output."""
        return "" if self._include else self._begun


def _end_of(stop: str, text: str, num_scanned: int) -> int:
    """Where the first match ends that is not within the scanned characters; -1 if there is none."""
    position = text.find(stop, max(0, num_scanned - len(stop) + 1))
    return position if position < 0 else position + len(stop)


def _num_begun(stop: str, text: str) -> int:
    """The characters at the end of the text that are the beginning of the stop string, but not all of it."""
    position = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while position >= 0 and not stop.startswith(text[position:]):
        position = text.find(stop[0], position + 1)
    return 0 if position < 0 else len(text) - position
