"""Phases of a start: spans on the clock that all processes share, and in seconds since the start began."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

API: Final = "api"
"""The process that the user started; all others are its children."""

FORKSERVER: Final = "forkserver"
"""The process that forks engine and workers after it has imported their modules."""

BACKGROUND: Final = frozenset({"prefetch"})
"""Processes that no other process waits for."""

UNEXPLAINED: Final = "unexplained"
"""Name of the time that no span covers."""

_NS: Final = 1_000_000_000


@dataclass(frozen=True)
class Phase:
    """A phase of one process."""

    process: str
    """`api`, `engine`, `forkserver` or `prefetch`."""
    name: str

    @property
    def key(self) -> str:
        """The phase's name across processes and starts."""
        return f"{self.process}:{self.name}"


@dataclass(frozen=True)
class PhaseSpan(Phase):
    """One phase in one process, in monotonic nanoseconds."""

    begin_ns: int
    end_ns: int
    waits_for: str | None = None
    """The process that this span only waits for."""

    @property
    def duration_s(self) -> float:
        return (self.end_ns - self.begin_ns) / _NS


@dataclass(frozen=True)
class Stretch(Phase):
    """A span, or a piece of the critical path, in seconds since the start began."""

    begin_s: float
    end_s: float
    waits_for: str | None = None
    """The process that this span only waits for."""

    def __post_init__(self) -> None:
        if not 0 <= self.begin_s <= self.end_s:
            raise ValueError(f"{self.key} cannot last from {self.begin_s:g} s to {self.end_s:g} s")

    @property
    def took_s(self) -> float:
        return self.end_s - self.begin_s


@dataclass(frozen=True)
class PhaseTotal(Phase):
    """The sum of all stretches of a phase."""

    begin_s: float
    """The first begin."""
    took_s: float
    share: float
    """Share of the whole start, 0 to 1."""


def sum_phases(path: Sequence[Stretch]) -> list[PhaseTotal]:
    """One total for each process and name, in order of begin; the shares of a critical path add up to 1."""
    total_s = sum(stretch.took_s for stretch in path)
    totals: dict[str, PhaseTotal] = {}
    for stretch in path:
        earlier = totals.get(stretch.key)
        begin_s = earlier.begin_s if earlier else stretch.begin_s
        took_s = stretch.took_s + (earlier.took_s if earlier else 0.0)
        share = took_s / total_s if total_s else 0.0
        totals[stretch.key] = PhaseTotal(stretch.process, stretch.name, begin_s, took_s, share)
    return list(totals.values())
