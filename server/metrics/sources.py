"""Protocols of the objects that metrics read when /metrics is scraped."""

from collections.abc import Callable, Mapping
from typing import Protocol


class WaitingWork(Protocol):
    """A thread pool."""

    @property
    def num_waiting(self) -> int:
        """Number of work items that no thread has begun."""

    def subscribe_waits(self, on_wait: Callable[[float], None]) -> None:
        """Calls `on_wait`, on any thread, with the seconds that a work item waited."""


class StartTimes(Protocol):
    """The durations of the start so far."""

    def elapsed_s(self) -> float:
        """Seconds in total."""

    def phase_seconds(self) -> Mapping[str, float]:
        """Seconds by phase."""


class Lag(Protocol):
    """How late a timer of the event loop was, in seconds."""

    @property
    def p50_s(self) -> float:
        """The median."""

    @property
    def p99_s(self) -> float:
        """The 99th percentile."""

    @property
    def max_s(self) -> float:
        """The maximum."""


class Heartbeat(Protocol):
    """The measurement of the loop lag."""

    @property
    def worst_lag_s(self) -> float:
        """The longest lag of the last minute."""

    @property
    def lag(self) -> Lag:
        """The quantiles of about the last minute."""


class ImageCache(Protocol):
    """The counters of the renderer's image cache; may be read from any thread."""

    num_queries: int
    num_hits: int
    num_bytes: int
