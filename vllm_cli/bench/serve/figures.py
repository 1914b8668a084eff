"""The figures of `bench serve`: of one round, over all rounds, and of one side divided by another."""

from vllm_cli.bench.figures import Metric, compare_rounds, mean_ms, percentile_ms, summarize_rounds
from vllm_cli.bench.load import LoadSamples
from vllm_cli.bench.probe import ProbeSamples
from vllm_cli.bench.serve.results import LevelRatio, LevelResult, RoundFigures

_NUM_ERROR_MESSAGES = 3
LATE_MS = 10
"""Open loop: a request that is sent this much after its due time is late."""

SERVE_METRICS = (
    Metric("output_tokens_per_s", "output tok/s", is_higher_better=True),
    Metric("requests_per_s", "requests/s", is_higher_better=True),
    Metric("ttft_mean_ms", "TTFT mean ms"),
    Metric("ttft_p50_ms", "TTFT p50 ms"),
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


def summarize_level(concurrency: int, rounds: list[RoundFigures]) -> LevelResult:
    """Median and spread of every figure over the rounds."""
    return LevelResult(concurrency=concurrency, summary=summarize_rounds(SERVE_METRICS, rounds), rounds=rounds)


def compare_levels(ours: LevelResult, theirs: LevelResult, *, against: str) -> LevelRatio:
    """The ratios of one side's figures to another side's, at one level."""
    ratios = compare_rounds(SERVE_METRICS, ours.rounds, theirs.rounds)
    return LevelRatio(against=against, concurrency=ours.concurrency, ratios=ratios)
