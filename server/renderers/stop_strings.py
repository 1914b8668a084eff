"""Finds stop strings in a text that arrives in pieces."""

from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple


class StopScan(NamedTuple):
    """The text that may be sent after one more piece, and the stop string that the piece completed."""

    text: str
    stop: str | None


class StopScanner:
    """Holds back text that may be the beginning of a stop string, and cuts the text at a complete one.

    One scanner serves one output, on one thread.
    """

    def __init__(self, stops: Sequence[str], include_in_output: bool = False) -> None:
        self._stops = [stop for stop in stops if stop]
        self._include = include_in_output
        self._held = ""

    def scan(self, piece: str, can_stop: bool = True) -> StopScan:
        """Scans the next piece; with `can_stop` false, stop strings that end in it are ignored."""
        text = self._held + piece
        if can_stop and (found := self._first_complete(text, len(self._held))):
            end, stop = found
            self._held = ""
            return StopScan(text[: end if self._include else end - len(stop)], stop)
        cut = min((_partial_start(text, stop) for stop in self._stops), default=len(text))
        self._held = text[cut:]
        return StopScan(text[:cut], None)

    def release(self) -> str:
        """Returns the held-back text at the end of the output."""
        held, self._held = self._held, ""
        return held

    def _first_complete(self, text: str, seen: int) -> tuple[int, str] | None:
        """End and text of the stop string that ends first after `seen`.

        The earlier in the list wins a tie.
        """
        starts = [(text.find(stop, max(0, seen - len(stop) + 1)), stop) for stop in self._stops]
        return min(((start + len(stop), stop) for start, stop in starts if start >= 0), key=itemgetter(0), default=None)


def _partial_start(text: str, stop: str) -> int:
    """The position of the longest prefix of `stop` at the end of `text`; `len(text)` if there is none."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return start if start >= 0 else len(text)
