"""One named stretch of a start in one process, on the monotonic clock that all processes of a machine share."""

from dataclasses import dataclass
from typing import Final

API: Final = "api"
"""The process that the user started; every other one is its child."""

BACKGROUND: Final = frozenset({"prefetch"})
"""Processes that help the start along and that nobody waits for."""

UNEXPLAINED: Final = "unexplained"
"""The name of time that no span accounts for."""

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
    """The process whose work this span only waits for."""

    @property
    def duration_s(self) -> float:
        return (self.end_ns - self.begin_ns) / _NS

    @property
    def key(self) -> str:
        """The phase's name across processes and starts."""
        return f"{self.process}:{self.name}"
