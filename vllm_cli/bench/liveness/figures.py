"""The figures of a round of `bench liveness`: of the load, of the probes and of the event loop."""

from collections import defaultdict
from collections.abc import Container, Sequence

from vllm_cli.bench.figures import Metric, percentile_ms
from vllm_cli.bench.liveness.loop_lag import LoopDelays
from vllm_cli.bench.load import LoadSamples
from vllm_cli.bench.probe import ProbeSamples
from vllm_cli.bench.request import RequestSample
from vllm_cli.bench.results import ResultPart


class Failure(ResultPart, frozen=True, kw_only=True):
    """Error responses with the same status."""

    status: int | None
    """HTTP status; null without a response."""
    num: int
    message: str
    """Message of the first one."""
    is_accepted: bool
    """Whether they count as served, by `--accept-status`."""


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


LIVENESS_METRICS = (
    Metric("requests_per_s", "requests/s", is_higher_better=True, is_judged=True),
    Metric("latency_p50_ms", "latency p50 ms"),
    Metric("latency_p99_ms", "latency p99 ms"),
    Metric("ttft_p50_ms", "TTFT p50 ms"),
    Metric("ttft_p99_ms", "TTFT p99 ms"),
    Metric("health_p50_ms", "/health p50 ms"),
    Metric("health_p99_ms", "/health p99 ms", is_judged=True),
    Metric("health_max_ms", "/health max ms"),
    Metric("loop_lag_max_ms", "event loop lag max ms"),
    Metric("num_loop_lags_10ms", "loop lags over 10 ms", is_compared=False),
    Metric("num_loop_lags_50ms", "loop lags over 50 ms", is_compared=False),
    Metric("num_probes", "probes", is_compared=False),
    Metric("probe_lag_p99_ms", "probe's own lag p99 ms", is_compared=False),
    Metric("client_cpu_share", "load generator, CPUs", is_compared=False),
)
"""Judged are /health and, because a server that does nothing would pass, the throughput."""


def measure_liveness(
    load: LoadSamples,
    probes: ProbeSamples,
    delays: LoopDelays,
    *,
    num_different: int,
    accepted_statuses: Container[int],
) -> LivenessFigures:
    """The figures of one round of `num_different` requests; failed ones count only as errors."""
    served = [sample for sample in load.requests if sample.error is None or sample.status in accepted_statuses]
    ttfts = [sample.ttft_ns for sample in served if sample.ttft_ns is not None]
    latencies = [sample.e2e_ns for sample in served]
    begin_ns = min(sample.start_ns for sample in load.requests)
    end_ns = max(sample.end_ns for sample in load.requests)
    pairs = zip(probes.due_ns, probes.latencies_ns, strict=True)
    health = [latency for due, latency in pairs if due <= end_ns and due + latency >= begin_ns]
    own_lags = [lag for due, lag in probes.wakes_ns if begin_ns <= due <= end_ns]
    return LivenessFigures(
        requests_per_s=len(served) * 1e9 / load.duration_ns,
        latency_p50_ms=percentile_ms(latencies, 50),
        latency_p99_ms=percentile_ms(latencies, 99),
        ttft_p50_ms=percentile_ms(ttfts, 50),
        ttft_p99_ms=percentile_ms(ttfts, 99),
        health_p50_ms=percentile_ms(health, 50),
        health_p99_ms=percentile_ms(health, 99),
        health_max_ms=percentile_ms(health, 100),
        probe_lag_p50_ms=percentile_ms(own_lags, 50),
        probe_lag_p99_ms=percentile_ms(own_lags, 99),
        probe_lag_max_ms=percentile_ms(own_lags, 100),
        is_probe_realtime=probes.is_realtime,
        loop_lag_max_ms=None if delays.max_s is None else delays.max_s * 1e3,
        is_loop_lag_bound=delays.is_bound,
        num_loop_lags_10ms=delays.num_late.get(0.01),
        num_loop_lags_50ms=delays.num_late.get(0.05),
        num_probes=len(health),
        num_probe_errors=probes.num_errors,
        duration_s=load.duration_ns / 1e9,
        num_requests=len(load.requests),
        num_repeated=max(0, len(load.requests) - num_different),
        num_errors=len(load.requests) - len(served),
        failures=_collect_failures(load.requests, accepted_statuses),
        client_cpu_share=load.client_cpu_ns / load.duration_ns,
    )


def _collect_failures(requests: Sequence[RequestSample], accepted_statuses: Container[int]) -> list[Failure]:
    """Failures by status, the most frequent first."""
    messages: defaultdict[int | None, list[str]] = defaultdict(list)
    for sample in requests:
        if sample.error is not None:
            messages[sample.status].append(sample.error)
    failures = [
        Failure(status=status, num=len(found), message=found[0], is_accepted=status in accepted_statuses)
        for status, found in messages.items()
    ]
    return sorted(failures, key=lambda failure: -failure.num)
