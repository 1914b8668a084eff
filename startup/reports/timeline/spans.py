"""Spans of a start. A span is one phase in one process."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

API: Final = "api"
"""The process that the user started. All other processes are its children."""

FORKSERVER: Final = "forkserver"
"""The process that imports modules and then forks engine and workers."""


@dataclass(frozen=True)
class Phase:
    """A phase of one process."""

    process: str
    """`api`, `engine`, `forkserver` or `prefetch`."""
    name: str

    @property
    def key(self) -> str:
        """Identifies the phase in every start. The same phase of two processes has two keys."""
        return f"{self.process}:{self.name}"


@dataclass(frozen=True)
class PhaseSpan(Phase):
    """A span in monotonic nanoseconds, which all processes share."""

    begin_ns: int
    end_ns: int
    waits_for: str | None = None
    """The process that this span only waits for. None if the span contains work."""


@dataclass(frozen=True)
class Stretch(Phase):
    """A span in seconds since the begin of the start."""

    begin_s: float
    end_s: float
    waits_for: str | None = None
    """The process that this span only waits for. None if the span contains work."""

    @property
    def took_s(self) -> float:
        return self.end_s - self.begin_s


@dataclass(frozen=True)
class PhaseTotal(Phase):
    """The total time of all spans of a phase."""

    begin_s: float
    took_s: float
    share: float
    """The share of the whole start, 0 to 1."""


def sum_phases(spans: Iterable[Stretch], total_s: float) -> list[PhaseTotal]:
    """One total for each phase with work. `spans` are in the order of their begin. Phases may overlap."""
    totals: dict[str, PhaseTotal] = {}
    for span in spans:
        if span.waits_for is not None:
            continue
        earlier = totals.get(span.key)
        begin_s = earlier.begin_s if earlier else span.begin_s
        took_s = span.took_s + (earlier.took_s if earlier else 0.0)
        totals[span.key] = PhaseTotal(span.process, span.name, begin_s, took_s, took_s / total_s if total_s else 0.0)
    return list(totals.values())
