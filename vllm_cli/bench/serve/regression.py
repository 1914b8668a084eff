"""Finds the figures in which side A was worse than a baseline or than another side."""

from pathlib import Path

from vllm_cli.bench.baseline import decode_baseline, require_same
from vllm_cli.bench.errors import BaselineError
from vllm_cli.bench.serve.config import OPEN_LOOP, ServeBenchConfig
from vllm_cli.bench.serve.figures import SERVE_METRICS
from vllm_cli.bench.serve.results import SERVE_SCHEMA_VERSION, ServeResult, ServeSettings
from vllm_cli.bench.verdict import MedianRatios, divide_medians, find_worse, take_medians

_JUDGED_NAMES = ("output_tokens_per_s", "ttft_p50_ms")
"""The figures that are judged: the others follow from these or are too noisy to fail a build."""
_JUDGED = [metric for metric in SERVE_METRICS if metric.name in _JUDGED_NAMES]
_SAME_SETTINGS = (
    "endpoint",
    "stream",
    "max_tokens",
    "prompt_tokens",
    "shared_prefix_tokens",
    "request_rate",
    "ignore_eos",
)


def read_serve_baseline(path: Path, config: ServeBenchConfig) -> ServeResult:
    """Reads an earlier run's `--json` file and checks that it measured the same load."""
    baseline = decode_baseline(path, ServeResult, command="bench serve", schema_version=SERVE_SCHEMA_VERSION)
    settings = ServeSettings.of(config)
    require_same(path, baseline.settings, settings, _SAME_SETTINGS)
    for level in config.levels:
        then_requests, now_requests = baseline.settings.num_requests.get(level), settings.num_requests[level]
        if then_requests != now_requests:
            raise BaselineError(
                f"The baseline {path} has {then_requests} requests at concurrency {level}, not {now_requests}"
            )
    return baseline


def find_worse_than_baseline(result: ServeResult, baseline: ServeResult, *, tolerance: float) -> list[str]:
    """One line for each median of side A that is worse than the baseline's by more than the tolerance."""
    then = {level.concurrency: level.summary for level in baseline.sides[0].levels}
    medians = [
        MedianRatios(_name(level.concurrency), "the baseline", divide_medians(level.summary, then[level.concurrency]))
        for level in result.sides[0].levels
    ]
    return find_worse(_JUDGED, medians, tolerance=tolerance)


def find_worse_than_others(result: ServeResult, *, tolerance: float) -> list[str]:
    """One line for each figure in which side A is worse than another side by more than the tolerance."""
    medians = [
        MedianRatios(_name(ratio.concurrency), ratio.against, take_medians(ratio.ratios)) for ratio in result.ratios
    ]
    return find_worse(_JUDGED, medians, tolerance=tolerance)


def _name(concurrency: int) -> str:
    return "open loop" if concurrency == OPEN_LOOP else f"concurrency {concurrency}"
