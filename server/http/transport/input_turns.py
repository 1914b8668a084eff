"""Divides what clients send into slices, and spreads their parsing over the turns of the event loop.

The parser calls Python for each header and chunk, and cannot be stopped within its input. A turn of the loop
may bring eight MiB, in which there may be a million chunks.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable

_COST_PER_TURN = 128
"""The most work of all connections together in a turn, besides the first slices of each input."""
HEAD_COST, BODY_COST = 4, 1
"""The work of parsing a slice, in units of about 10 µs."""
MOST_LINES = 64
"""The most lines in a slice of a chunked body. Each chunk, and each header of what follows it, has a line's end."""
_MOST_BYTES = 1 << 18
_FIRST_BYTES = 128
"""The number of bytes whose lines are counted first. They have at most 64 callbacks of the parser."""
_END_OF_HEAD = b"\r\n\r\n"
_EMPTY_LINES = re.compile(rb"[\r\n]*")


class InputTurns:
    """The connections of a server whose input waits to be parsed. Each parses a slice, then the next one does."""

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


def end_of_head_slice(data: bytes | bytearray) -> int:
    """Returns the length of a slice of data in which a request begins or its headers continue.

    The slice has the end of at most one head, or of two if the data begins with the last bytes of the first.
    """
    begin = _EMPTY_LINES.match(data).end()  # type: ignore[union-attr]
    found = data.find(_END_OF_HEAD, begin)
    end = len(data) if found < 0 else found + len(_END_OF_HEAD)
    return min(end, _MOST_BYTES)


def end_of_body_slice(data: bytes | bytearray, num_left: int | None) -> int:
    """Returns the length of a slice of data in which a body continues.

    Args:
        num_left: the bytes of the body that have not come. None for a chunked body.
    """
    most = min(len(data), _MOST_BYTES)
    if num_left is not None:
        return min(num_left, most)
    end = min(_FIRST_BYTES, most)
    num_lines = data.count(b"\n", 0, end)
    while end < most:
        further = min(2 * end, most)
        num_lines += data.count(b"\n", end, further)
        if num_lines > MOST_LINES:
            break
        end = further
    return end
