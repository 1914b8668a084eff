"""The models of a router as its file or command line describes them, and the faults of that description."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from base.server_settings import SHUTDOWN_TIMEOUT_S
from envs.registry import env
from startup.errors import StartupError
from startup.session.preflight.report import USAGE

PORT: Final = "${PORT}"
"""The text in a command that each start replaces by the port of the server."""


class ServerCall(NamedTuple):
    """A request by which the router puts a command's server to sleep or wakes it."""

    method: str
    path: str
    body: str = ""
    timeout_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class ForeignCommand:
    """A server that is not ours. The command that starts it is neither `vllm serve` nor `vllm-cli serve`."""

    arguments: tuple[str, ...]
    """The command, in which `${PORT}` is not yet replaced. Empty if the server already runs."""
    address: str
    """The server's address from the key `proxy`, for example "http://127.0.0.1:${PORT}"."""
    port: int | None
    """The port that the file names. If it names none (None), each start replaces `${PORT}` by a free port."""
    check_endpoint: str = "/health"
    """The path that answers 200 once the server is ready. "none": the server is ready once it listens."""
    stop_words: tuple[str, ...] = ()
    """The command that stops the server, with `${PID}` not yet replaced. If empty, SIGTERM stops it."""
    sleep_calls: tuple[ServerCall, ...] = ()
    """The requests that put the server to sleep, in order. They are given only together with `wake_calls`."""
    wake_calls: tuple[ServerCall, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BodyChanges:
    """How the router changes a request's body before the model gets it.

    A key `a.b` means the key b in the object a. A key that ends in `?` is set only in a body that still lacks
    it after the earlier changes.
    """

    model: str | None = None
    """The new value of the body's member `model`. None: the client's value stays."""
    strip: tuple[str, ...] = ()
    """The keys that are removed first."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Key -> its new value. These keys are set after `strip`."""
    set_by_name: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name of the model -> keys and their values, which are set last in requests with this name."""


class ServerTimes(NamedTuple):
    """After which time the router kills a server of our own."""

    shutdown_s: float = SHUTDOWN_TIMEOUT_S
    """--shutdown-timeout: how long running requests may take after SIGTERM."""
    silence_s: float = env.VCLI_ENGINE_WATCHDOG_TIMEOUT.default
    """--engine-watchdog-timeout: how long the server may give no answer. 0 means for ever."""


@dataclass(frozen=True, kw_only=True)
class ModelPolicy:
    """When a model may run and rest, and which requests it gets."""

    ttl_s: float | None = None
    """Seconds without a request until the model is stopped. None: it runs until its memory is needed."""
    pinned: bool = False
    """Whether the model is never stopped, neither when another model needs memory nor when it is idle."""
    concurrency: int | None = None
    """The most requests that the model's server gets at once. None: no limit."""
    refuses_excess: bool = False
    """Whether requests above `concurrency` are refused, as in llama-swap. Otherwise they wait."""
    excludes: frozenset[str] = frozenset()
    """Names of models that must not run when this model starts."""
    restart_limit: int | None = None
    """Failures in a row until the model stops restarting by itself. None: it never restarts by itself. If a
    number is given, requests wait at most `max_wait_s`."""
    on_swap: Literal["stop", "sleep"] = "stop"
    """How the model makes room when another model needs its memory."""
    idle_sleep_s: float | None = None
    """Seconds without a request until the model falls asleep. None: it stays awake."""


@dataclass(frozen=True, kw_only=True)
class ModelEntry(ModelPolicy):
    """One model of a router, as the router runs it."""

    name: str
    aliases: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    """The arguments after `vllm-cli serve`: MODEL and all flags except the address. Empty for `foreign`."""
    foreign: ForeignCommand | None = None
    engine: str = "auto"
    """`embedded`, `vllm` or `auto`. `other` for a `foreign` command."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    sleep_levels: tuple[int, ...] = (1, 2)
    """vLLM's sleep levels for this model, best first. `with_sleep_arguments` removes unsupported levels."""
    preload: bool = False
    unlisted: bool = False
    changes: BodyChanges | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    """Further members of the model's entry in /v1/models."""
    start_timeout_s: float | None = None
    times: ServerTimes = ServerTimes()
    adapters: tuple[str, ...] = ()
    """The names of the model's LoRA adapters. Requests may name an adapter instead of the model."""
    line: int | None = field(default=None, compare=False)

    @property
    def should_sleep(self) -> bool:
        return self.on_swap == "sleep" or self.idle_sleep_s is not None

    @property
    def has_files(self) -> bool:
        """Whether the router knows files of the model, such as GGUF files that a command names."""
        return self.foreign is None or any(argument.endswith(".gguf") for argument in self.foreign.arguments)

    @property
    def request_names(self) -> tuple[str, ...]:
        """Every name by which a request can select this model."""
        return (self.name, *self.aliases, *self.adapters)


@dataclass(frozen=True)
class Fault:
    """A fault of the file of models: where it is, what is wrong, and what to write instead."""

    text: str
    line: int | None = None
    key: str = ""
    """The path of the key: `models.qwen.ttl`."""
    file: str = "models.yaml"
    """The file's name as the user gave it. Empty if the fault is on the command line."""
    check: str = USAGE
    """The preflight's check that found the fault. `usage` means a key or value that is never accepted."""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (place, self.key, self.text) if part)


class Notice(Fault):
    """A message about a key that is accepted, but has no effect or not the usual effect."""


@dataclass(frozen=True)
class ModelsFile:
    """The content of the file, without faults."""

    entries: Mapping[str, ModelEntry]
    """Name -> entry, in the order of the file."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    notices: tuple[Notice, ...] = ()
    log_level: str | None = None
    """The router's log level. It counts only if the command line gives none."""


class Defaults(NamedTuple):
    """Values for keys that the file of models may leave out."""

    ttl_s: float | None = None
    start_timeout_s: float | None = None
    idle_sleep_s: float | None = None
    on_swap: Literal["stop", "sleep"] = "stop"


_MAX_SHOWN: Final = 100


class ModelsFileError(StartupError):
    """The file of models has faults. The message lists one fault on each line."""

    cause = "models-file"

    def __init__(self, faults: Sequence[Fault]) -> None:
        shown = [*map(str, faults[:_MAX_SHOWN])]
        shown += [f"and {len(faults) - _MAX_SHOWN} more faults"] if len(faults) > _MAX_SHOWN else []
        super().__init__("\n".join(shown))
        self.faults = tuple(faults)

    @property
    def has_usage_error(self) -> bool:
        """Whether one of the faults is a key, value or flag that is never accepted."""
        return any(fault.check == USAGE for fault in self.faults)
