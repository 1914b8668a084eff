"""Says where a run was slower than a baseline file or than the other side."""

from pathlib import Path

from vllm_cli.bench.baseline import decode_baseline, require_same
from vllm_cli.bench.config import BenchConfig
from vllm_cli.bench.errors import BaselineError
from vllm_cli.bench.figures import METRICS
from vllm_cli.bench.results import SCHEMA_VERSION, BenchResult
from vllm_cli.bench.verdict import Contest, divide_medians, find_worse, take_medians

CHECKED = ("output_tokens_per_s", "ttft_p50_ms")
"""The figures that decide: the others follow from these or are too noisy to fail a build."""
_DECISIVE = [metric for metric in METRICS if metric.name in CHECKED]
_SAME_SETTINGS = ("endpoint", "stream", "max_tokens", "prompt_tokens", "ignore_eos")


def read_baseline(path: Path, config: BenchConfig) -> BenchResult:
    """Read an earlier run's `--json` file and make sure that it measured the same thing."""
    baseline = decode_baseline(path, BenchResult, command="bench serve", schema_version=SCHEMA_VERSION)
    require_same(path, baseline.settings, config, _SAME_SETTINGS)
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
    contests = [
        Contest(_name(level.concurrency), "the baseline", divide_medians(level.summary, then[level.concurrency]))
        for level in result.sides[0].levels
    ]
    return find_worse(_DECISIVE, contests, tolerance=tolerance)


def find_slower_than_others(result: BenchResult, *, tolerance: float) -> list[str]:
    """One line for each figure in which side A is worse than another side by more than the tolerance."""
    contests = [Contest(_name(ratio.concurrency), ratio.against, take_medians(ratio.ratios)) for ratio in result.ratios]
    return find_worse(_DECISIVE, contests, tolerance=tolerance)


def _name(concurrency: int) -> str:
    return f"concurrency {concurrency}"
