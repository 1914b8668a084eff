"""The figures of a round of `bench serve`."""

from vllm_cli.bench.figures import Metric, mean_ms, percentile_ms
from vllm_cli.bench.load import LoadSamples
from vllm_cli.bench.probe import ProbeSamples
from vllm_cli.bench.request_format import TokenSource
from vllm_cli.bench.results import LoadedSide, ResultPart

_NUM_ERROR_MESSAGES = 3
LATE_MS = 10
"""Open loop: a request that is sent this much after its due time is late."""


class RoundFigures(ResultPart, frozen=True, kw_only=True):
    """One round of one side at one level; a figure that could not be measured is null."""

    output_tokens_per_s: float
    requests_per_s: float
    ttft_mean_ms: float | None
    """Time to the first text."""
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    tpot_mean_ms: float | None
    """Time from the first to the last text of a request, per token after the first."""
    tpot_p50_ms: float | None
    tpot_p99_ms: float | None
    itl_mean_ms: float | None
    """Time between two pieces of text of one request."""
    itl_p50_ms: float | None
    itl_p99_ms: float | None
    e2e_p50_ms: float | None
    e2e_p99_ms: float | None
    health_p50_ms: float | None
    health_p99_ms: float | None
    health_max_ms: float | None
    delay_max_ms: float | None
    """Open loop: the longest time by which the generator itself sent a request after its due time."""
    num_late: int
    """Open loop: requests that were sent more than 10 ms after their due time."""
    duration_s: float
    num_requests: int
    num_errors: int
    num_short: int
    """Requests that ended before `max_tokens`."""
    prompt_tokens: int
    output_tokens: int
    num_probes: int
    num_probe_errors: int
    client_cpu_share: float
    """CPU time of the load generator, as a share of one processor."""
    errors: list[str]
    """The first few different error messages."""


class ServeSide(LoadedSide[RoundFigures], frozen=True, kw_only=True):
    """One server's results; a condition is a number of requests in flight, 0 in an open loop."""

    token_source: TokenSource
    """`usage`: the server's own counts; `chunks`: pieces of text, where the server sends no usage."""
    has_ignore_eos: bool
    """False if the server does not accept `ignore_eos`, so that answers may end early."""


SERVE_METRICS = (
    Metric("output_tokens_per_s", "output tok/s", is_higher_better=True, is_judged=True),
    Metric("requests_per_s", "requests/s", is_higher_better=True),
    Metric("ttft_mean_ms", "TTFT mean ms"),
    Metric("ttft_p50_ms", "TTFT p50 ms", is_judged=True),
    Metric("ttft_p99_ms", "TTFT p99 ms"),
    Metric("tpot_mean_ms", "TPOT mean ms"),
    Metric("tpot_p50_ms", "TPOT p50 ms"),
    Metric("tpot_p99_ms", "TPOT p99 ms"),
    Metric("itl_mean_ms", "inter-token mean ms"),
    Metric("itl_p50_ms", "inter-token p50 ms"),
    Metric("itl_p99_ms", "inter-token p99 ms"),
    Metric("e2e_p50_ms", "e2e p50 ms"),
    Metric("e2e_p99_ms", "e2e p99 ms"),
    Metric("health_p50_ms", "/health p50 ms"),
    Metric("health_p99_ms", "/health p99 ms"),
    Metric("health_max_ms", "/health max ms"),
    Metric("delay_max_ms", "sent late by at most ms"),
)


def measure_round(load: LoadSamples, probes: ProbeSamples, *, max_tokens: int) -> RoundFigures:
    """The figures of one round; failed requests count as errors and in no other figure."""
    good = [sample for sample in load.requests if sample.error is None]
    failed = [sample.error for sample in load.requests if sample.error is not None]
    output_tokens = sum(sample.num_output_tokens for sample in good)
    duration_s = load.duration_ns / 1e9
    ttfts = [sample.ttft_ns for sample in good if sample.ttft_ns is not None]
    tpots = [sample.tpot_ns for sample in good if sample.tpot_ns is not None]
    gaps = [gap for sample in good for gap in sample.gaps_ns]
    e2es = [sample.e2e_ns for sample in good]
    return RoundFigures(
        output_tokens_per_s=output_tokens / duration_s,
        requests_per_s=len(good) / duration_s,
        ttft_mean_ms=mean_ms(ttfts),
        ttft_p50_ms=percentile_ms(ttfts, 50),
        ttft_p99_ms=percentile_ms(ttfts, 99),
        tpot_mean_ms=mean_ms(tpots),
        tpot_p50_ms=percentile_ms(tpots, 50),
        tpot_p99_ms=percentile_ms(tpots, 99),
        itl_mean_ms=mean_ms(gaps),
        itl_p50_ms=percentile_ms(gaps, 50),
        itl_p99_ms=percentile_ms(gaps, 99),
        e2e_p50_ms=percentile_ms(e2es, 50),
        e2e_p99_ms=percentile_ms(e2es, 99),
        health_p50_ms=percentile_ms(probes.latencies_ns, 50),
        health_p99_ms=percentile_ms(probes.latencies_ns, 99),
        health_max_ms=percentile_ms(probes.latencies_ns, 100),
        delay_max_ms=percentile_ms(load.delays_ns, 100),
        num_late=sum(delay_ns > LATE_MS * 1e6 for delay_ns in load.delays_ns),
        duration_s=duration_s,
        num_requests=len(load.requests),
        num_errors=len(failed),
        num_short=sum(sample.num_output_tokens < max_tokens for sample in good),
        prompt_tokens=sum(sample.usage.prompt_tokens for sample in good if sample.usage),
        output_tokens=output_tokens,
        num_probes=len(probes.latencies_ns),
        num_probe_errors=probes.num_errors,
        client_cpu_share=load.client_cpu_ns / load.duration_ns,
        errors=list(dict.fromkeys(failed))[:_NUM_ERROR_MESSAGES],
    )
