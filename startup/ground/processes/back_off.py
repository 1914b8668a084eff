"""Ever longer pauses before something that fails is tried again. Standard library only."""

from typing import Final

_FIRST_S: Final = 1.0
LONGEST_S: Final = 60.0
_STABLE_S: Final = 10.0
"""A program that has worked for so long has recovered: its next failure counts as the first one."""


class BackOff:
    """Pauses of 1, 2, 4 … 60 s; there is none after a failure of a program that had recovered."""

    def __init__(self) -> None:
        self.num_failures = 0
        """Failures in a row."""
        self._next_s = _FIRST_S

    def take_s(self, worked_s: float = 0.0) -> float:
        """The pause after a failure of what has worked so long; the next pause is twice as long."""
        if worked_s >= _STABLE_S:
            self.reset()
        self.num_failures += 1
        if worked_s >= _STABLE_S:
            return 0.0
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, LONGEST_S)
        return pause_s

    def reset(self) -> None:
        """Earlier failures do not count any more."""
        self.num_failures = 0
        self._next_s = _FIRST_S
