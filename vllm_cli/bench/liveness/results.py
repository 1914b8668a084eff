"""The result of `bench liveness` as it goes to `--json` and comes back as a baseline."""

import msgspec

from vllm_cli.bench.config import IdlePolicy
from vllm_cli.bench.liveness.config import Kind, PayloadShape, PlainKind
from vllm_cli.bench.results import Machine, Spread

LIVENESS_SCHEMA_VERSION = 1


class Failure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers that were not what was asked for, all with the same status."""

    status: int | None
    """HTTP status; null when no answer came."""
    num: int
    message: str
    """What the first one said."""
    is_accepted: bool
    """Whether `--accept-status` says that they count as served."""


class HealthPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """The slowest probe of a moment."""

    at_s: float
    """Since probing began, which is a little before the load does."""
    max_ms: float


class LivenessFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One round of one kind of load on one side; a figure that could not be measured is null."""

    requests_per_s: float
    """Served ones."""
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    ttft_p50_ms: float | None
    """Time to the first text; null unless text is streamed."""
    ttft_p99_ms: float | None
    health_p50_ms: float | None
    """Of the probes that were under way while the load ran."""
    health_p99_ms: float | None
    health_max_ms: float | None
    probe_lag_p50_ms: float | None
    """How late the probe's own process woke up meanwhile: part of what the machine, not the server, adds."""
    probe_lag_p99_ms: float | None
    probe_lag_max_ms: float | None
    is_probe_realtime: bool
    """Whether the probe's process had real-time priority, for which the benchmark must run as root."""
    loop_lag_max_ms: float | None
    """The longest delay of the event loop as the server itself tells; null where it does not."""
    is_loop_lag_bound: bool
    """Whether that is a bound of the server's histogram, because the server remembers a longer one from before."""
    num_loop_lags_10ms: int | None
    """Heartbeats of the event loop that were more than 10 ms late."""
    num_loop_lags_50ms: int | None
    num_probes: int
    num_probe_errors: int
    duration_s: float
    num_requests: int
    num_repeated: int
    """Requests whose like had been sent before in this round."""
    num_errors: int
    failures: list[Failure]
    client_cpu_share: float
    """Share of one processor that the load generator took."""
    health_over_time: list[HealthPoint]
    load_begin_s: float
    """Since probing began."""
    load_end_s: float


class KindResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One side under one kind of load."""

    kind: Kind
    summary: dict[str, Spread]
    """By figure, over the rounds that have it."""
    rounds: list[LivenessFigures]


class LivenessSideResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One server's results."""

    name: str
    target: str
    """The URL or the command, without secrets."""
    model: str
    version: str | None
    ready_after_s: float | None
    """From starting the command to its first 200 at `/health`; null for a server that ran already."""
    kinds: list[KindResult]


class KindRatio(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Side A over another side, taken round by round, under one kind of load."""

    against: str
    kind: Kind
    ratios: dict[str, Spread]


class KindSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of one kind was asked of every side."""

    kind: Kind
    concurrency: int
    num_requests: int
    """Different requests in a round."""


class LivenessSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was asked of every side."""

    kinds: list[KindSettings]
    mixture: list[PlainKind]
    """What `mixed` consisted of."""
    duration_s: float | None
    num_rounds: int
    shape: PayloadShape
    accepted_statuses: list[int]
    idle: IdlePolicy
    seed: int


class LivenessResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that one run of `bench liveness` found."""

    schema: str = "vllm-cli/bench-liveness"
    schema_version: int
    created_at: str
    """ISO 8601, UTC."""
    machine: Machine
    settings: LivenessSettings
    sides: list[LivenessSideResult]
    ratios: list[KindRatio]

    @property
    def num_errors(self) -> int:
        return sum(figures.num_errors for side in self.sides for kind in side.kinds for figures in kind.rounds)
