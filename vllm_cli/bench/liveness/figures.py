"""The figures of `bench liveness`: of the load, of the probes and of the event loop."""

from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from vllm_cli.bench.figures import Metric, percentile_ms
from vllm_cli.bench.liveness.loop_lag import LoopDelays
from vllm_cli.bench.liveness.results import Failure, HealthPoint, LivenessFigures
from vllm_cli.bench.load import LoadSamples
from vllm_cli.bench.probe import ProbeSamples
from vllm_cli.bench.request import RequestSample

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
_MAX_POINTS = 200
_POINT_S = 0.02


@dataclass(frozen=True, kw_only=True)
class RoundSamples:
    """The samples of one round."""

    load: LoadSamples
    probes: ProbeSamples
    delays: LoopDelays
    num_different: int
    """Number of different requests."""


def measure_liveness(samples: RoundSamples, accepted_statuses: Container[int]) -> LivenessFigures:
    """The figures of one round; failed requests count as errors and in no other figure."""
    load, probes, delays = samples.load, samples.probes, samples.delays
    served = [sample for sample in load.requests if sample.error is None or sample.status in accepted_statuses]
    ttfts = [sample.ttft_ns for sample in served if sample.ttft_ns is not None]
    latencies = [sample.e2e_ns for sample in served]
    begin_ns, end_ns = _find_bounds(load)
    health = [latency for due, latency in _pair(probes) if due <= end_ns and due + latency >= begin_ns]
    own_lags = [lag for due, lag in probes.wakes_ns if begin_ns <= due <= end_ns]
    probing_ns = min((due for due, _ in probes.wakes_ns), default=begin_ns)
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
        num_repeated=max(0, len(load.requests) - samples.num_different),
        num_errors=len(load.requests) - len(served),
        failures=_collect_failures(load.requests, accepted_statuses),
        client_cpu_share=load.client_cpu_ns / load.duration_ns,
        health_over_time=trace_health(probes, probing_ns),
        load_begin_s=(begin_ns - probing_ns) / 1e9,
        load_end_s=(end_ns - probing_ns) / 1e9,
    )


def _find_bounds(load: LoadSamples) -> tuple[int, int]:
    return min(sample.start_ns for sample in load.requests), max(sample.end_ns for sample in load.requests)


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


def _pair(probes: ProbeSamples) -> Iterator[tuple[int, int]]:
    return zip(probes.due_ns, probes.latencies_ns, strict=True)


def trace_health(probes: ProbeSamples, probing_ns: int) -> list[HealthPoint]:
    """The slowest probe of each interval; at most `_MAX_POINTS` equal intervals of at least `_POINT_S`."""
    length_ns = max(probes.due_ns, default=probing_ns) - probing_ns
    stretch_ns = max(int(_POINT_S * 1e9), length_ns // _MAX_POINTS + 1)
    slowest: defaultdict[int, int] = defaultdict(int)
    for due_ns, latency_ns in _pair(probes):
        number = (due_ns - probing_ns) // stretch_ns
        slowest[number] = max(slowest[number], latency_ns)
    return [
        HealthPoint(round(number * stretch_ns / 1e9, 3), round(latency_ns / 1e6, 3))
        for number, latency_ns in sorted(slowest.items())
    ]
