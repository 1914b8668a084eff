"""The figures of `bench startup`: of one start, over all rounds, and of one side divided by another."""

from msgspec import structs

from vllm_cli.bench.figures import Metric, compare_rounds, percentile_ms, spread_of, summarize_rounds
from vllm_cli.bench.startup.config import StartState
from vllm_cli.bench.startup.page_cache import Residency
from vllm_cli.bench.startup.probe import StartProbeSamples
from vllm_cli.bench.startup.results import StartFigures, StateRatio, StateResult

STARTUP_METRICS = (
    Metric("listening_ms", "listening ms"),
    Metric("healthy_s", "healthy s"),
    Metric("first_token_s", "first token s"),
    Metric("probe_p50_ms", "probe p50 ms"),
    Metric("probe_p99_ms", "probe p99 ms"),
    Metric("probe_max_ms", "probe max ms"),
    Metric("num_refused", "probes refused"),
)
_COMPARED = STARTUP_METRICS[:-1]
"""Without the number of refused probes, which may be 0."""


def add_probes(figures: StartFigures, probes: StartProbeSamples) -> StartFigures:
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


def summarize_state(state: StartState, rounds: list[StartFigures]) -> StateResult:
    """Median and spread of every figure and phase over the rounds."""
    names = dict.fromkeys(name for figures in rounds for name in figures.phases)
    reported = [figures.phases for figures in rounds if figures.phases]
    phases = {name: spread_of(phases.get(name, 0.0) for phases in reported) for name in names}
    return StateResult(
        state=state,
        summary=summarize_rounds(STARTUP_METRICS, rounds),
        phases={name: spread for name, spread in phases.items() if spread},
        rounds=rounds,
    )


def compare_states(ours: StateResult, theirs: StateResult, *, against: str) -> StateRatio:
    """The ratios of one side's figures to another side's, from one state."""
    ratios = compare_rounds(_COMPARED, ours.rounds, theirs.rounds)
    return StateRatio(against=against, state=ours.state, ratios=ratios)
