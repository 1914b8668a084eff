"""Says where a run was slower than a baseline file or than the other side."""

from pathlib import Path

from vllm_cli.bench.baseline import decode_baseline
from vllm_cli.bench.config import BenchConfig
from vllm_cli.bench.errors import BaselineError
from vllm_cli.bench.figures import METRICS
from vllm_cli.bench.results import SCHEMA_VERSION, BenchResult

CHECKED = ("output_tokens_per_s", "ttft_p50_ms")
"""The figures that decide: the others follow from these or are too noisy to fail a build."""
_SAME_SETTINGS = ("endpoint", "stream", "max_tokens", "prompt_tokens", "ignore_eos")


def read_baseline(path: Path, config: BenchConfig) -> BenchResult:
    """Read an earlier run's `--json` file and make sure that it measured the same thing."""
    baseline = decode_baseline(path, BenchResult, command="bench serve", schema_version=SCHEMA_VERSION)
    for name in _SAME_SETTINGS:
        then, now = getattr(baseline.settings, name), getattr(config, name)
        if then != now:
            raise BaselineError(f"The baseline {path} was measured with {name} {then!r}, this run has {now!r}")
    for level in config.levels:
        then_requests, now_requests = baseline.settings.num_requests.get(level), config.requests_at(level)
        if then_requests != now_requests:
            raise BaselineError(
                f"The baseline {path} has {then_requests} requests at concurrency {level}, not {now_requests}"
            )
    return baseline


def find_slower_than_baseline(result: BenchResult, baseline: BenchResult, *, tolerance: float) -> list[str]:
    """One line for each figure of side A whose median is worse than the baseline's by more than the tolerance."""
    then = {level.concurrency: level.summary for level in baseline.sides[0].levels}
    found = []
    for level in result.sides[0].levels:
        earlier = then[level.concurrency]
        ratios = {
            name: spread.median / earlier[name].median
            for name, spread in level.summary.items()
            if name in earlier and earlier[name].median
        }
        found += _find_slower(ratios, level.concurrency, "the baseline", tolerance)
    return found


def find_slower_than_others(result: BenchResult, *, tolerance: float) -> list[str]:
    """One line for each figure in which side A is worse than another side by more than the tolerance."""
    found = []
    for comparison in result.ratios:
        ratios = {name: spread.median for name, spread in comparison.ratios.items()}
        found += _find_slower(ratios, comparison.concurrency, comparison.against, tolerance)
    return found


def _find_slower(ratios: dict[str, float], concurrency: int, against: str, tolerance: float) -> list[str]:
    return [
        f"concurrency {concurrency}: {metric.label} is {ratio:.2f}x that of {against}"
        for metric in METRICS
        if metric.name in CHECKED and (ratio := ratios.get(metric.name)) is not None
        if (ratio < 1 - tolerance if metric.is_higher_better else ratio > 1 + tolerance)
    ]
