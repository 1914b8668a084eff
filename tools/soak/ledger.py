"""Counts how every request of a soak ended, by kind and by status."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Final, Literal

Ending = Literal["answered", "refused", "shed", "left", "failed", "lost"]
"""`answered`: completely. `refused`: 4xx. `shed`: 429, 503 or 504, by an overloaded server. `left`: the
client disconnected on purpose. `failed`: another 5xx, or an error event in a stream. `lost`: the connection
ended without an error."""

SHED_STATUSES: Final = (429, 503, 504)
_MAX_MESSAGES: Final = 20


@dataclass
class Ledger:
    """Holds only counters, so that it does not grow with the duration."""

    endings: defaultdict[str, Counter[Ending]] = field(default_factory=lambda: defaultdict(Counter))
    """By kind of request."""
    statuses: Counter[int] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)
    """Messages of the first few unexpected endings."""

    def record(self, kind: str, ending: Ending, *, status: int | None = None, message: str = "") -> None:
        """Records the end of one request."""
        self.endings[kind][ending] += 1
        if status is not None:
            self.statuses[status] += 1
        if ending in ("failed", "lost"):
            self._add_message(f"{kind}: {ending}: {message}")

    def _add_message(self, message: str) -> None:
        if len(self.messages) < _MAX_MESSAGES and message not in self.messages:
            self.messages.append(message)

    def count(self, ending: Ending) -> int:
        """Number of requests with this ending."""
        return sum(endings[ending] for endings in self.endings.values())

    @property
    def num_requests(self) -> int:
        return sum(endings.total() for endings in self.endings.values())
