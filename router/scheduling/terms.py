"""The terms of the scheduler: memory, limits, rules of a model, actions, and the view of a model.

Standard library only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal, NamedTuple

from startup.ground.config import SeveralModelsConfig

State = Literal["stopped", "starting", "ready", "falling asleep", "asleep", "waking", "draining", "failed"]
"""`draining`: its process admits no more requests, and is stopped when its last request has ended.
`falling asleep`: its process admits none either, but stays and frees the GPU's memory. A request wakes it.
`failed`: it has no process, and the last one failed to start or ended by itself."""

RefusalKind = Literal["failed", "overloaded", "no_room", "removed", "shutting_down"]


class Need(NamedTuple):
    """Memory of a model or of the machine, in bytes."""

    ram_bytes: int = 0
    gpu_bytes: int = 0
    """The sum over all GPUs."""

    @staticmethod
    def sum(needs: Iterable["Need"]) -> "Need":
        return reduce(Need.plus, needs, NOTHING)

    def plus(self, other: "Need") -> "Need":
        return Need(self.ram_bytes + other.ram_bytes, self.gpu_bytes + other.gpu_bytes)

    def minus(self, other: "Need") -> "Need":
        """The difference; negative where the other is larger."""
        return Need(self.ram_bytes - other.ram_bytes, self.gpu_bytes - other.gpu_bytes)

    def fits_in(self, room: "Need") -> bool:
        """A need of nothing fits into any room, even into an overdrawn one."""
        return (self.ram_bytes <= 0 or self.ram_bytes <= room.ram_bytes) and (
            self.gpu_bytes <= 0 or self.gpu_bytes <= room.gpu_bytes
        )

    def at_most(self, limit: "Need") -> "Need":
        return Need(min(self.ram_bytes, limit.ram_bytes), min(self.gpu_bytes, limit.gpu_bytes))

    def at_least(self, floor: "Need") -> "Need":
        return Need(max(self.ram_bytes, floor.ram_bytes), max(self.gpu_bytes, floor.gpu_bytes))


NOTHING = Need()
UNLIMITED = 1 << 62


@dataclass(frozen=True, kw_only=True)
class SchedulerLimits(SeveralModelsConfig):
    """Limits that all models of a router share, with and without a flag."""

    min_stay_s: float = 2.0
    """How long a model that became ready is not stopped for another one."""
    memory_wait_s: float = 10.0
    """How long a start waits for memory that is not free though the sums allow the start."""

    @property
    def budget(self) -> Need:
        return Need(UNLIMITED if self.memory_budget_bytes is None else self.memory_budget_bytes, UNLIMITED)


@dataclass(frozen=True, kw_only=True)
class ModelRules:
    """What the scheduler knows of one model."""

    ttl_s: float | None = None
    """How long it stays ready without a request; a pinned one stays."""
    pinned: bool = False
    """Never stopped for another model."""
    concurrency: int | None = None
    """The most leases at once; further requests wait."""
    refuses_excess: bool = False
    """Whether further requests are refused instead, as in llama-swap."""
    excludes: frozenset[str] = frozenset()
    """Models that must have no process when this one starts."""
    restart_limit: int | None = None
    """It restarts by itself until it has failed so often in a row. Requests wait `max_wait_s` for it."""
    on_swap: Literal["stop", "sleep"] = "stop"
    """How it gives way when another model needs its memory."""
    idle_sleep_s: float | None = None
    """How long it stays awake without a request."""
    asleep: Mapping[int, Need] = field(default_factory=dict)
    """The levels at which its process can sleep, the best one first, with its estimated memory there.

    Without one it is stopped instead."""
    may_overlap: bool = False
    """Whether a process of it may start while an earlier one runs."""
    need: Need = NOTHING
    """Its estimated memory, which counts until it was measured."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start a process of the model; answered by `became_ready` or `ended`."""

    generation: int
    """The number of this life of this process, which events, `Stop` and `Admit` carry."""
    model: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the process, which has no lease; answered by `ended`."""

    generation: int


@dataclass(frozen=True, slots=True)
class Sleep:
    """Have the process, which has no lease, fall asleep.

    Answered by `fell_asleep`, `stayed_awake` or `ended`.
    """

    generation: int
    level: int


@dataclass(frozen=True, slots=True)
class Wake:
    """Wake the process; answered by `woke` or `ended`."""

    generation: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The model with a `restart_limit` has failed too often, or for good; it is not started any more."""

    model: str


@dataclass(frozen=True, slots=True)
class Admit:
    """The ticket has a lease: the process is ready, and stays so until the ticket leaves."""

    ticket: int
    generation: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The ticket waits no longer; it need not leave."""

    ticket: int
    kind: RefusalKind
    reason: str
    retry_after_s: int | None = None


Action = Start | Stop | Sleep | Wake | GiveUp | Admit | Refuse


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """One model, as lists show it. Times are those of the scheduler's clock."""

    state: State
    since_s: float
    num_running: int
    """Requests that hold a lease, on all of its processes."""
    num_waiting: int
    need: Need
    """The need of all of its processes; if it has none, the need of the next one."""
    reason: str
    """Why the last start failed, or the last process ended by itself; empty after a start that did not."""
    retry_at_s: float | None
    """When a request may start it again; None if it has not failed."""
    num_starts: int
    last_start_s: float | None
    """How long its last complete start took."""
