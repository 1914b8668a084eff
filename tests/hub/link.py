"""A network link of limited rate that all connections share, and what went over it."""

import threading
import time
from typing import Final

_PIECE_S: Final = 0.01
"""A piece takes this long at the link's rate, so that connections alternate a hundred times a second."""
_MAX_PIECE: Final = 1 << 20
_MIN_PIECE: Final = 1 << 10
_LATENESS_S: Final = 0.05
"""A sender that wakes up late by up to this time sends faster afterwards; no other burst is possible."""


class Link:
    """Delays senders so that together they keep to the rate, however many connections there are.

    Each `take` reserves the next part of the link's time, so that senders are served in order. Only bodies
    of files count, not headers.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free_from_s = 0.0
        self.bytes_per_s: float | None = None
        """None: unlimited. May be changed at any time."""

    @property
    def piece_bytes(self) -> int:
        """How many bytes to send after one `take`."""
        if self.bytes_per_s is None:
            return _MAX_PIECE
        return min(max(int(self.bytes_per_s * _PIECE_S), _MIN_PIECE), _MAX_PIECE)

    def take(self, num_bytes: int) -> None:
        """Waits until so many bytes fit through the link."""
        rate = self.bytes_per_s
        if rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_from_s = max(self._free_from_s, now - _LATENESS_S) + num_bytes / rate
            wait_s = self._free_from_s - now
        if wait_s > 0:
            time.sleep(wait_s)
