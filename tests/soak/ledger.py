"""Keeps the books of a soak: how every request ended, by kind and by status."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Final, Literal

Ending = Literal["answered", "refused", "shed", "left", "failed", "lost"]
"""`answered`: in full. `refused`: 4xx. `shed`: 503 or 504, as a server does that has too much to do. `left`: the client
went away, as it had planned. `failed`: another 5xx, or an error event in a stream. `lost`: cut without a word."""

SHED_STATUSES: Final = (429, 503, 504)
_MAX_MESSAGES: Final = 20


@dataclass
class Ledger:
    """Counts only: it does not grow with the time that a soak takes."""

    endings: defaultdict[str, Counter[Ending]] = field(default_factory=lambda: defaultdict(Counter))
    """By kind of request."""
    statuses: Counter[int] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)
    """What the first few of those said that were not to be."""

    def enter(self, kind: str, ending: Ending, *, status: int | None = None, message: str = "") -> None:
        """One request has ended."""
        self.endings[kind][ending] += 1
        if status is not None:
            self.statuses[status] += 1
        if ending in ("failed", "lost"):
            self.complain(f"{kind}: {ending}: {message}")

    def complain(self, message: str) -> None:
        """Something that was not to be."""
        if len(self.messages) < _MAX_MESSAGES and message not in self.messages:
            self.messages.append(message)

    def count(self, ending: Ending) -> int:
        """Requests of all kinds that ended so."""
        return sum(endings[ending] for endings in self.endings.values())

    @property
    def num_requests(self) -> int:
        return sum(endings.total() for endings in self.endings.values())
