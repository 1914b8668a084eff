"""The figures of a start, and of all starts of a side."""

from msgspec import structs

from vllm_cli.bench.figures import Metric, percentile_ms
from vllm_cli.bench.probe import ProbeSamples
from vllm_cli.bench.results import Measured, ResultPart, SideResult, Spread
from vllm_cli.bench.startup.caches import Residency


class StartFigures(ResultPart, frozen=True, kw_only=True):
    """One start; times count from the exec of the command, a figure that could not be measured is null."""

    listening_ms: float | None
    """Until a connection was accepted."""
    healthy_s: float | None
    """Until `/health` answered 200; null for a server that has none."""
    first_token_s: float
    """Until the first text of a completion arrived at the client."""
    probe_p50_ms: float | None = None
    """Latency of probes between exec and first token; any HTTP response counts."""
    probe_p99_ms: float | None = None
    probe_max_ms: float | None = None
    num_probes: int = 0
    """Probes with a response."""
    num_refused: int | None = None
    """Probes whose connection was refused; null for the bare script, which has no socket."""
    num_lost: int = 0
    """Probes without a response after an earlier one had a response."""
    phases: dict[str, float] = {}
    """Seconds by `process:phase`, from `/startupz`; empty if the server has no such route."""
    download_mb: float | None = None
    """MB of files that the stand-in for the hub sent; null in all states but `cold-download`."""
    hub_requests: int | None = None
    """Requests to the hub, for files and for everything else."""
    transfer_s: float | None = None
    """How long a plain download of the same files took after the start."""
    transfer_ratio: float | None = None
    """The time to the first token, divided by that."""
    evicted_bytes: int = 0
    """Size of the files that were evicted from the page cache before the start."""
    resident_bytes: int = 0
    """Bytes of them that stayed in memory."""


class StandbyFigures(ResultPart, frozen=True, kw_only=True):
    """The standby that a side's servers were forked from."""

    memory_bytes: int
    """PSS of the standby and its template process, while no server runs."""
    import_s: float
    """How long its imports took."""
    num_starts: int
    """Servers forked, with the start that is not measured."""


class StateResult(Measured[StartFigures], frozen=True, kw_only=True):
    """One side's starts from one state."""

    phases: dict[str, Spread]


class StartupSide(SideResult[StateResult], frozen=True, kw_only=True):
    """One side's starts."""

    first_text: str | None
    """The text of the greedy first token, to check that sides do the same work; null if unknown."""
    standby: StandbyFigures | None = None
    """Null without the state `standby`, and for other programs than vllm-cli."""


STARTUP_METRICS = (
    Metric("listening_ms", "listening ms"),
    Metric("healthy_s", "healthy s"),
    Metric("first_token_s", "first token s", is_judged=True),
    Metric("probe_p50_ms", "probe p50 ms"),
    Metric("probe_p99_ms", "probe p99 ms"),
    Metric("probe_max_ms", "probe max ms"),
    Metric("num_refused", "probes refused", is_compared=False),
    Metric("download_mb", "downloaded MB"),
    Metric("hub_requests", "hub requests", is_compared=False),
    Metric("transfer_s", "transfer alone s", is_compared=False),
    Metric("transfer_ratio", "first token ÷ transfer", is_compared=False),
)
"""The first token is judged: it contains the others."""


def add_probes(figures: StartFigures, probes: ProbeSamples) -> StartFigures:
    """The figures, completed by the samples of the probe process."""
    return structs.replace(
        figures,
        probe_p50_ms=percentile_ms(probes.latencies_ns, 50),
        probe_p99_ms=percentile_ms(probes.latencies_ns, 99),
        probe_max_ms=percentile_ms(probes.latencies_ns, 100),
        num_probes=len(probes.latencies_ns),
        num_refused=probes.num_refused,
        num_lost=probes.num_lost,
    )


def add_residency(figures: StartFigures, residency: Residency | None) -> StartFigures:
    """The figures, completed by the eviction before the start."""
    if residency is None:
        return figures
    return structs.replace(figures, evicted_bytes=residency.total_bytes, resident_bytes=residency.resident_bytes)
