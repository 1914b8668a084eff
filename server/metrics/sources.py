"""What is asked for figures when /metrics is scraped; described here, handed over from above."""

from collections.abc import Callable, Mapping
from typing import Protocol


class WaitingWork(Protocol):
    """A pool of threads."""

    @property
    def num_waiting(self) -> int:
        """Pieces of work that no thread has begun."""

    def subscribe_waits(self, on_wait: Callable[[float], None]) -> None:
        """Calls back, on any thread, with the seconds that a piece of work waited."""


class StartTimes(Protocol):
    """How long the start took, or has taken so far."""

    def elapsed_s(self) -> float:
        """In all."""

    def phase_seconds(self) -> Mapping[str, float]:
        """By phase."""


class Lag(Protocol):
    """How late a timer of the event loop was, in seconds."""

    @property
    def p50_s(self) -> float:
        """Half of the times at most this much."""

    @property
    def p99_s(self) -> float:
        """But for one time in a hundred, at most this much."""

    @property
    def max_s(self) -> float:
        """The worst."""


class Heartbeat(Protocol):
    """What watches the event loop."""

    @property
    def worst_lag_s(self) -> float:
        """The worst of the last minute."""

    @property
    def lag(self) -> Lag:
        """Of about the last minute."""


class ImageCache(Protocol):
    """What the renderer keeps of images, and how often it was of use; may be read from any thread."""

    num_queries: int
    num_hits: int
    num_bytes: int
