"""Divides what clients send into slices, and spreads their parsing over the turns of the event loop.

The parser calls Python for each header and chunk, and cannot be stopped within its input. A turn of the loop
may bring megabytes, in which there may be a million chunks.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable

_COST_PER_TURN = 64
"""The most work of all connections together in a turn, besides the first slices of each input."""
HEAD_COST, BODY_COST = 4, 1
"""The work of parsing a slice, in units of about 10 µs."""
MOST_LINES = 64
"""The most lines in a slice of a chunked body. Each chunk has a line, and each header of what follows it."""
_COUNTED_BYTES = 128
_SMALL_BYTES = 2048
_END_OF_HEAD = b"\r\n\r\n"
_EMPTY_LINES = re.compile(rb"[\r\n]*")


class InputTurns:
    """The connections of a server whose input waits to be parsed. They take turns, slice by slice."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], int]] = deque()
        self._is_scheduled = False

    def add(self, parse_slice: Callable[[], int]) -> None:
        """Calls the function in one of the next turns. It returns its cost, and may add itself again."""
        self._waiting.append(parse_slice)
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        try:
            cost = 0
            while self._waiting and cost < _COST_PER_TURN:
                cost += self._waiting.popleft()()
        finally:  # a function that fails must not stop the others
            self._is_scheduled = False
            self._schedule()


def end_of_head_slice(data: bytearray, begin: int, end: int) -> int:
    """Returns where a slice of data ends, in which a request begins or its headers continue.

    The slice has the end of at most one head, or of two if the data begins with the last bytes of the first.
    """
    first_line = _EMPTY_LINES.match(data, begin, end).end()  # type: ignore[union-attr]
    found = data.find(_END_OF_HEAD, first_line, end)
    return end if found < 0 else found + len(_END_OF_HEAD)


def end_of_body_slice(data: bytearray, begin: int, end: int, num_left: int | None) -> int:
    """Returns where a slice of data ends, in which a body continues.

    Args:
        num_left: the bytes of the body that have not come. None for a chunked body.
    """
    if num_left is not None:
        return min(begin + num_left, end)
    last = min(begin + _COUNTED_BYTES, end)
    num_lines = data.count(b"\n", begin, last)
    while num_lines < MOST_LINES:  # few lines are found faster than they are counted
        last = data.find(b"\n", last, end) + 1
        if not last:
            return end
        num_lines += 1
    return last


def is_one_slice(data: bytearray, num_bytes: int, num_left: int | None) -> bool:
    """Whether the first bytes of data need not be divided. `num_left` is as in `end_of_body_slice`."""
    if num_left is not None and num_bytes <= num_left:
        return True
    if num_bytes <= _SMALL_BYTES:
        return data.count(b"\n", 0, num_bytes) <= MOST_LINES
    return end_of_body_slice(data, 0, num_bytes, None) == num_bytes
