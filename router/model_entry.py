"""The models that a router offers, as its file or command line describes them, and the faults of the file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

from startup.ground.errors import StartupError
from startup.session.preflight.report import USAGE

NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})


class ServerCall(NamedTuple):
    """A request that the router sends to a command's server."""

    method: str
    path: str
    body: str = ""
    timeout_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class ForeignCommand:
    """A server that is not ours: a `cmd` that is neither `vllm serve` nor `vllm-cli serve`."""

    words: tuple[str, ...]
    """The command; `${PORT}` is not yet replaced. Empty: the server runs already."""
    address: str
    """Where it answers, "http://127.0.0.1:${PORT}"; the key `proxy`."""
    port: int | None
    """The port that the file names. None: each start chooses a free one, which replaces `${PORT}`."""
    check_endpoint: str = "/health"
    """The path that answers 200 when the server is ready. "none": it is ready as soon as it listens."""
    stop_words: tuple[str, ...] = ()
    """The command that stops it; `${PID}` is not yet replaced. Empty: SIGTERM."""
    sleep_calls: tuple[ServerCall, ...] = ()
    """The calls that put it to sleep, in their order. If there are any, there are `wake_calls`, too."""
    wake_calls: tuple[ServerCall, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BodyChanges:
    """The router changes a request's body before the model gets it. The key `a.b` is the key b in a.

    A key that ends in `?` is set only if the body lacks it after the changes before.
    """

    model: str | None = None
    """The name that the model's server gets."""
    strip: tuple[str, ...] = ()
    """Keys that are removed."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Keys that get these values, afterwards."""
    set_by_name: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Keys that get these values last, only in requests with this name of the model."""


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model. Two entries are equal if the process of the one can go on for the other."""

    name: str
    aliases: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    """Words for our `serve`: MODEL first, then all flags but those of the address. Empty with `foreign`."""
    foreign: ForeignCommand | None = None
    engine: str = "auto"
    """`embedded`, `vllm` or `auto`; `other` with `foreign`."""
    env: Mapping[str, str] = field(default_factory=lambda: NO_ENVIRONMENT, repr=False)
    ttl_s: float | None = None
    """How long the model stays without a request. None: it stays until its memory is needed."""
    on_swap: Literal["stop", "sleep"] = "stop"
    """How it gives way when another model needs its memory."""
    idle_sleep_s: float | None = None
    """How long it stays awake without a request."""
    sleep_levels: tuple[int, ...] = (1, 2)
    """The levels at which it may sleep, the best one first. A complete entry has only the possible ones."""
    restart_limit: int | None = None
    """The router restarts it until it has failed so often in a row. None: only requests start it again."""
    preload: bool = False
    pinned: bool = False
    """It is stopped neither for another model nor because it is idle."""
    concurrency: int | None = None
    """The most requests that are passed to it at once."""
    refuses_excess: bool = False
    """Whether further requests are refused. If not, they wait."""
    unlisted: bool = False
    changes: BodyChanges | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    """Further members of it in /v1/models."""
    start_timeout_s: float | None = None
    excludes: frozenset[str] = frozenset()
    """Models that must not run when this one starts."""
    adapters: tuple[str, ...] = ()
    """Further names for requests, which the model's own server lists: its LoRA adapters."""
    line: int | None = field(default=None, compare=False)

    @property
    def should_sleep(self) -> bool:
        return self.on_swap == "sleep" or self.idle_sleep_s is not None

    @property
    def request_names(self) -> tuple[str, ...]:
        """Every `model` of a request that this entry answers."""
        return (self.name, *self.aliases, *self.adapters)


@dataclass(frozen=True)
class Fault:
    """Something wrong in the file of models: where, what, and what to write instead."""

    text: str
    line: int | None = None
    key: str = ""
    """The path of the key: `models.qwen.ttl`."""
    file: str = "models.yaml"
    """The file as the user named it. Empty: the fault is in the command line."""
    check: str = USAGE
    """The check of the preflight that has found it; `usage` for a key or value that is never accepted."""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (place, self.key, self.text) if part)


class Notice(Fault):
    """Something in the file that is accepted, but has no effect or another effect than elsewhere."""


@dataclass(frozen=True)
class ModelsFile:
    """What the file says, free of faults."""

    entries: Mapping[str, ModelEntry]
    """By name, in the order of the file."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    notices: tuple[Notice, ...] = ()
    log_level: str | None = None
    """For the router, if the command line gives none."""


_MAX_SHOWN: Final = 100


class ModelsFileError(StartupError):
    """The file of models has faults; the message lists them, one a line."""

    cause = "models-file"

    def __init__(self, faults: Sequence[Fault]) -> None:
        shown = [*map(str, faults[:_MAX_SHOWN])]
        shown += [f"and {len(faults) - _MAX_SHOWN} more faults"] if len(faults) > _MAX_SHOWN else []
        super().__init__("\n".join(shown))
        self.faults = tuple(faults)

    @property
    def has_usage_error(self) -> bool:
        """Whether a key, a value or a flag is not accepted."""
        return any(fault.check == USAGE for fault in self.faults)
