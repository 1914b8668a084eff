"""Ever longer pauses before something that fails is tried again. Standard library only."""

from typing import Final

_FIRST_S: Final = 1.0
LONGEST_S: Final = 60.0


class BackOff:
    """1, 2, 4 … 60 s."""

    def __init__(self) -> None:
        self._next_s = _FIRST_S

    def take_s(self) -> float:
        """The pause after this failure; the one after the next failure is twice as long."""
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, LONGEST_S)
        return pause_s

    def reset(self) -> None:
        """What has failed works again."""
        self._next_s = _FIRST_S
