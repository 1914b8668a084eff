"""The result of `bench liveness`, as it is written to `--json` and read as a baseline."""

from msgspec import field

from vllm_cli.bench.config import IdlePolicy
from vllm_cli.bench.liveness.config import Kind, PayloadShape, PlainKind
from vllm_cli.bench.results import BenchResult, Measured, Ratio, ResultPart, SideResult

LIVENESS_SCHEMA_VERSION = 1


class Failure(ResultPart, frozen=True, kw_only=True):
    """Error responses with the same status."""

    status: int | None
    """HTTP status; null without a response."""
    num: int
    message: str
    """Message of the first one."""
    is_accepted: bool
    """Whether they count as served, by `--accept-status`."""


class HealthPoint(ResultPart, frozen=True, array_like=True):
    """The slowest probe of a short interval."""

    at_s: float
    """Since the first probe, which is sent a little before the load."""
    max_ms: float


class LivenessFigures(ResultPart, frozen=True, kw_only=True):
    """One round of one kind of load on one side; a figure that could not be measured is null."""

    requests_per_s: float
    """Served requests only."""
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    ttft_p50_ms: float | None
    """Time to the first text; null unless streamed."""
    ttft_p99_ms: float | None
    health_p50_ms: float | None
    """Latency of the probes in flight while the load ran."""
    health_p99_ms: float | None
    health_max_ms: float | None
    probe_lag_p50_ms: float | None
    """How late the probe process itself woke up: a delay of the machine, not of the server."""
    probe_lag_p99_ms: float | None
    probe_lag_max_ms: float | None
    is_probe_realtime: bool
    """Whether the probe process had real-time priority, which needs root."""
    loop_lag_max_ms: float | None
    """The longest delay of the event loop, from the server's metrics; null without them."""
    is_loop_lag_bound: bool
    """Whether it is a bucket bound, because the gauge still holds a longer lag from before."""
    num_loop_lags_10ms: int | None
    """Heartbeats of the event loop that were more than 10 ms late."""
    num_loop_lags_50ms: int | None
    num_probes: int
    num_probe_errors: int
    duration_s: float
    num_requests: int
    num_repeated: int
    """Requests that repeat an earlier request of the round."""
    num_errors: int
    failures: list[Failure]
    client_cpu_share: float
    """CPU time of the load generator, as a share of one processor."""
    health_over_time: list[HealthPoint]
    load_begin_s: float
    """Since the first probe."""
    load_end_s: float


class KindResult(Measured[Kind, LivenessFigures], frozen=True, kw_only=True):
    """One side under one kind of load."""

    condition: Kind = field(name="kind")


class LivenessSideResult(SideResult[KindResult], frozen=True, kw_only=True):
    """One server's results."""

    conditions: list[KindResult] = field(name="kinds")
    ready_after_s: float | None
    """From starting the command to its first 200 at `/health`; null for a server given by its URL."""


class KindRatio(Ratio[Kind], frozen=True, kw_only=True):
    """The ratios under one kind of load."""

    condition: Kind = field(name="kind")


class KindSettings(ResultPart, frozen=True, kw_only=True):
    """The load of one kind, the same for every side."""

    kind: Kind
    concurrency: int
    num_requests: int
    """Different requests in a round."""


class LivenessSettings(ResultPart, frozen=True, kw_only=True):
    """The load, the same for every side."""

    kinds: list[KindSettings]
    mixture: list[PlainKind]
    """The kinds that `mixed` cycles through."""
    duration_s: float | None
    num_rounds: int
    shape: PayloadShape
    accepted_statuses: list[int]
    idle: IdlePolicy
    seed: int


class LivenessResult(BenchResult[LivenessSettings, LivenessSideResult, KindRatio], frozen=True, kw_only=True):
    """The result of one run of `bench liveness`."""

    schema: str = "vllm-cli/bench-liveness"
