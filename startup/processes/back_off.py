"""Pauses between attempts, which grow with each failure. Imports only the standard library."""

from typing import Final

_FIRST_S: Final = 1.0
LONGEST_S: Final = 60.0
_STABLE_S: Final = 10.0
"""A program that works for this many seconds counts as recovered. Its next failure counts as the first."""


class BackOff:
    """Pauses of 1, 2, 4 … 60 s. The first failure in a row has no pause if the program has worked before."""

    def __init__(self) -> None:
        self.num_failures = 0
        """Failures in a row."""
        self._next_s = _FIRST_S

    def take_s(self, worked_s: float = 0.0) -> float:
        """Returns the pause after a failure. Before the failure, the program worked for `worked_s`."""
        if worked_s >= _STABLE_S:
            self.reset()
        self.num_failures += 1
        if worked_s > 0 and self.num_failures == 1:
            return 0.0
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, LONGEST_S)
        return pause_s

    def reset(self) -> None:
        self.num_failures = 0
        self._next_s = _FIRST_S
