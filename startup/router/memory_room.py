"""The room that models have: the last reading of the free memory, and an account of what is left.

Standard library only.
"""

from dataclasses import dataclass
from typing import Final

from startup.router.scheduler_terms import Need

READING_VALID_S: Final = 1.0
"""How long a reading of the free memory counts."""


class FreeMemory:
    """The last reading of the memory that is really free."""

    def __init__(self, free: Need | None, now: float) -> None:
        self.free = free
        """None: the system does not tell, and only the sums decide."""
        self.read_s = now
        self.last_end_s: float | None = None
        """When the last process ended."""
        self.asked_s: float | None = None
        """When a reading was asked for that has not come."""
        self._stale_before_s = now

    def read(self, free: Need | None, read_s: float) -> None:
        """A reading, which began at that time, has come."""
        if read_s >= self.read_s:
            self.free, self.read_s = free, read_s
        if self.asked_s is not None and read_s >= self.asked_s:
            self.asked_s = None

    def outdate(self, now: float) -> None:
        """What processes hold has changed: only a later reading counts."""
        self._stale_before_s = now

    def note_end(self, now: float) -> None:
        self.last_end_s = now
        self.outdate(now)

    def is_fresh(self, now: float) -> bool:
        return self.free is None or (self.read_s >= self._stale_before_s and now < self.read_s + READING_VALID_S)


@dataclass(slots=True)
class Ledger:
    """Room that is left."""

    budget: Need
    slots: float
    free: Need | None

    def holds(self, charge: Need, need: Need) -> bool:
        return self.slots >= 1 and charge.fits_in(self.budget) and (self.free is None or need.fits_in(self.free))

    def take(self, charge: Need, need: Need) -> None:
        self.slots -= 1
        self.budget = self.budget.minus(charge)
        self.free = None if self.free is None else self.free.minus(need)

    def give(self, charge: Need, held: Need) -> None:
        self.slots += 1
        self.budget = self.budget.plus(charge)
        self.free = None if self.free is None else self.free.plus(held)

    def copy(self) -> "Ledger":
        return Ledger(self.budget, self.slots, self.free)
