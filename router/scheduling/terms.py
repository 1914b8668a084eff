"""The scheduler's types: memory, limits, rules of a model, actions, and the view of a model.

A generation is one process of a model from its start to its end.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal, NamedTuple

from router.model_entry import ModelPolicy
from startup.settings.config import SeveralModelsConfig

State = Literal["stopped", "starting", "ready", "falling asleep", "asleep", "waking", "draining", "failed"]
"""`draining`: the model's process admits no more requests, and is stopped when its last request has ended.
`falling asleep`: the process stops admitting requests, and frees the GPU's memory. A later request wakes it.
`failed`: the model has no process, and its last process failed to start or ended by itself."""


class Outcome(NamedTuple):
    """How a model's last start or process has ended. Only this value says whether the model has failed."""

    kind: Literal["stopped", "could not sleep", "failed", "given up"] = "stopped"
    """`could not sleep`: the process could not fall asleep, and was stopped instead, which is no failure.
    `given up`: the model has failed so often, or for good, that only a request starts it again."""
    text: str = ""
    """Why. Empty if the process was stopped on purpose."""

    @property
    def has_failed(self) -> bool:
        return self.kind in ("failed", "given up")

    @property
    def failure(self) -> str:
        """Why the model has failed. Empty if it has not failed."""
        return self.text if self.has_failed else ""


RefusalKind = Literal["failed", "overloaded", "no_room", "removed", "shutting_down"]


class Need(NamedTuple):
    """Memory that a model needs or that the machine has, in bytes."""

    ram_bytes: int = 0
    gpu_bytes: int = 0
    """The sum over all GPUs."""

    @staticmethod
    def sum(needs: Iterable["Need"]) -> "Need":
        return reduce(Need.plus, needs, NOTHING)

    def plus(self, other: "Need") -> "Need":
        return Need(self.ram_bytes + other.ram_bytes, self.gpu_bytes + other.gpu_bytes)

    def minus(self, other: "Need") -> "Need":
        """Subtracts `other`. A part of the result is negative if that part of `other` is larger."""
        return Need(self.ram_bytes - other.ram_bytes, self.gpu_bytes - other.gpu_bytes)

    def fits_in(self, room: "Need") -> bool:
        """Whether `room` is large enough for this need. A need of zero fits even into negative room."""
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
    """Limits for all models of a router together. Flags set the limits of the base class."""

    min_stay_s: float = 2.0
    """Seconds that a model stays ready before it can be stopped for another model."""
    memory_wait_s: float = 10.0
    """How long a start waits for memory that other programs hold, in seconds."""

    @property
    def budget(self) -> Need:
        return Need(UNLIMITED if self.memory_budget_bytes is None else self.memory_budget_bytes, UNLIMITED)


@dataclass(frozen=True, kw_only=True)
class ModelRules(ModelPolicy):
    """The properties of one model that the scheduler uses."""

    asleep: Mapping[int, Need] = field(default_factory=dict)
    """Sleep level -> estimated memory there, best level first. If empty, the model is stopped instead."""
    may_overlap: bool = False
    """Whether a new process of the model may start while an old one still runs."""
    need: Need = NOTHING
    """The estimated memory, which counts until the first measurement."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start a process of the model. The caller then reports `became_ready` or `ended`."""

    generation: int
    """The number of the new generation. Its events and its later actions carry this number, too."""
    model: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop a process that has no lease. The caller then reports `ended`."""

    generation: int


@dataclass(frozen=True, slots=True)
class Sleep:
    """Put a process without a lease to sleep. Then report `fell_asleep`, `could_not_sleep` or `ended`."""

    generation: int
    level: int


@dataclass(frozen=True, slots=True)
class Wake:
    """Wake the process. The caller then reports `woke` or `ended`."""

    generation: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """A model with a `restart_limit` has failed too often, or for good. It no longer restarts by itself."""

    model: str


@dataclass(frozen=True, slots=True)
class Admit:
    """The request gets a lease on the process, which stays ready until the request leaves."""

    ticket: int
    generation: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request is refused. The caller need not call `leave` for it."""

    ticket: int
    kind: RefusalKind
    reason: str
    retry_after_s: int | None = None


Action = Start | Stop | Sleep | Wake | GiveUp | Admit | Refuse


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """The state of one model, as lists show it. Times are those of the scheduler's clock."""

    state: State
    since_s: float
    num_running: int
    """The requests that hold a lease on any of the model's processes."""
    num_waiting: int
    need: Need
    """The need of all of the model's processes together, or of the next process if there is none."""
    outcome: Outcome
    """How the last start or process has ended. A start that succeeds resets it."""
    retry_at_s: float | None
    """When a request may start the model again. None if it has not failed."""
    num_starts: int
    last_start_s: float | None
    """The seconds of the last complete start. None before the first one."""

    @property
    def reason(self) -> str:
        """Why the model has failed. Empty if it has not failed."""
        return self.outcome.failure
