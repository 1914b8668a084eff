"""The record of one phase in one process, on the monotonic clock that all processes of a machine share."""

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
class PhaseSpan:
    """Times are monotonic nanoseconds."""

    process: str
    """`api`, `engine`, `forkserver` or `prefetch`."""
    name: str
    begin_ns: int
    end_ns: int
    waits_for: str | None = None
    """The process that this span only waits for."""

    @property
    def duration_s(self) -> float:
        return (self.end_ns - self.begin_ns) / _NS

    @property
    def key(self) -> str:
        """The phase's name across processes and starts."""
        return f"{self.process}:{self.name}"
