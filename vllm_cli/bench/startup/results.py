"""The result of `bench startup` as it goes to `--json` and comes back as a baseline."""

import msgspec

from vllm_cli.bench.config import Endpoint
from vllm_cli.bench.results import Machine, Spread
from vllm_cli.bench.startup.config import CacheState

STARTUP_SCHEMA_VERSION = 1


class StartFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One start; times count from the exec of the command, a figure that could not be measured is null."""

    listening_ms: float | None
    """Until a connection was accepted."""
    healthy_s: float | None
    """Until `/health` answered 200; null for a server that has none."""
    first_token_s: float
    """Until the first text of a completion arrived at the client."""
    probe_p50_ms: float | None = None
    """How fast any HTTP answer came, at any time between exec and first token."""
    probe_p99_ms: float | None = None
    probe_max_ms: float | None = None
    num_probes: int = 0
    """Probes that were answered."""
    num_refused: int | None = None
    """Probes whose connection nobody accepted; null where there is no server."""
    num_lost: int = 0
    """Probes without an answer after the server had answered one."""
    phases: dict[str, float] = {}
    """Seconds by `process:phase`, where the server tells them at `/startupz`."""
    evicted_bytes: int = 0
    """Size of the files that were put out of the page cache before."""
    resident_bytes: int = 0
    """How much of them stayed all the same."""


class StateResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One side's starts from one state of the caches."""

    state: CacheState
    summary: dict[str, Spread]
    """By figure, over the rounds that have it."""
    phases: dict[str, Spread]
    rounds: list[StartFigures]


class StartupSideResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One side's starts."""

    name: str
    target: str
    """The command, without secrets."""
    model: str
    version: str | None
    first_text: str | None
    """What the greedy first token says, to show that the sides do the same work; null where it cannot be had."""
    states: list[StateResult]


class StateRatio(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Side A over another side, taken round by round, from one state."""

    against: str
    state: CacheState
    ratios: dict[str, Spread]


class StartupSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was asked of every side."""

    endpoint: Endpoint
    states: list[CacheState]
    num_rounds: int
    evict_libraries: bool
    max_tokens: int


class StartupResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that one run of `bench startup` found."""

    schema: str = "vllm-cli/bench-startup"
    schema_version: int
    created_at: str
    """ISO 8601, UTC."""
    machine: Machine
    settings: StartupSettings
    sides: list[StartupSideResult]
    ratios: list[StateRatio]
