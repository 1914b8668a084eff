"""Finds stop strings in a text that arrives in pieces, by the algorithm of Knuth, Morris and Pratt.

Every character is compared with one position of each stop string, and with a few more where a beginning
ends, whatever the length of the stop string and of what is held back.
"""

from array import array
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple


class TextDelta(NamedTuple):
    """The text that some tokens added, as far as it may be sent."""

    text: str
    stop: str | None = None
    """The stop string that ended the output."""


class StopString:
    """What one stop string's matches share; one per request, whatever the number of its choices."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._fallbacks = array("i", (-1,))
        """Characters that matched -> those that still do if the next one differs; -1 if it begins no match.

        The table grows with the longest match so far; its last entry is for a complete match.
        """
        self._border = 0
        """Length of the longest beginning at the end of the part in the table, and not all of it."""

    def match(self, piece: str, start: int, num_matched: int) -> tuple[int, int]:
        """Where the first match ends behind `start`, -1 if none does, and the characters matched there."""
        text, fallbacks, position = self.text, self._fallbacks, start
        while position < len(piece):
            if not num_matched:
                position = piece.find(text[0], position)
                if position < 0:
                    return -1, 0
            character = piece[position]
            while num_matched >= 0 and text[num_matched] != character:
                num_matched = fallbacks[num_matched]
            num_matched += 1
            position += 1
            if num_matched == len(fallbacks):
                self._extend()
            if num_matched == len(text):
                return position, fallbacks[num_matched]
        return -1, num_matched

    def _extend(self) -> None:
        text, fallbacks, border = self.text, self._fallbacks, self._border
        size = len(fallbacks)
        if size == len(text):
            fallbacks.append(border)
        elif text[size] == text[border]:
            fallbacks.append(fallbacks[border])
            self._border = border + 1
        else:
            fallbacks.append(border)
            while border >= 0 and text[size] != text[border]:
                border = fallbacks[border]
            self._border = border + 1


class StopScanner:
    """Holds back text that may be the beginning of a stop string, and cuts the text at a complete one.

    One scanner serves one output, on one thread.
    """

    def __init__(self, stops: Iterable[StopString], include_in_output: bool = False) -> None:
        self._stops = [stop for stop in stops if stop.text]
        self._include = include_in_output
        self._num_matched = [0] * len(self._stops)
        self._held: deque[str] = deque()
        self._num_held = 0

    def scan(self, piece: str, can_stop: bool = True) -> TextDelta:
        """Scans the next piece; with `can_stop` false, stop strings that end in it are ignored."""
        first_end, first = len(piece) + 1, None
        for index, stop in enumerate(self._stops):
            end, num_matched = stop.match(piece, 0, self._num_matched[index])
            while end >= 0 and not can_stop:
                end, num_matched = stop.match(piece, end, num_matched)
            self._num_matched[index] = num_matched
            if 0 <= end < first_end:
                first_end, first = end, stop.text
        self._held.append(piece[:first_end])
        self._num_held += min(len(piece), first_end)
        if first is not None:
            return TextDelta(self._take(self._num_held - (0 if self._include else len(first))), first)
        keep = 0 if self._include else max(self._num_matched, default=0)
        return TextDelta(self._take(self._num_held - keep))

    def release(self) -> str:
        """Returns the held-back text at the end of the output."""
        return self._take(self._num_held)

    def _take(self, num_characters: int) -> str:
        """Removes this many characters from the front of the held-back text."""
        taken = []
        self._num_held -= num_characters
        while num_characters > 0:
            piece = self._held.popleft()
            if len(piece) > num_characters:
                self._held.appendleft(piece[num_characters:])
            taken.append(piece[:num_characters])
            num_characters -= len(piece)
        return "".join(taken)
