"""Finds the figures in which side A was worse under load than a baseline or than another side."""

from pathlib import Path

from vllm_cli.bench.baseline import decode_baseline, require_same
from vllm_cli.bench.errors import BaselineError
from vllm_cli.bench.liveness.config import LivenessConfig
from vllm_cli.bench.liveness.figures import LIVENESS_METRICS
from vllm_cli.bench.liveness.results import LIVENESS_SCHEMA_VERSION, LivenessResult
from vllm_cli.bench.verdict import MedianRatios, divide_medians, find_worse, take_medians

_JUDGED_NAMES = ("requests_per_s", "health_p99_ms")
"""The figures that are judged: without requests/s, a server that does nothing would pass."""
_JUDGED = [metric for metric in LIVENESS_METRICS if metric.name in _JUDGED_NAMES]
_SAME_SETTINGS = ("shape", "duration_s")


def read_liveness_baseline(path: Path, config: LivenessConfig) -> LivenessResult:
    """Reads an earlier run's `--json` file and checks that it measured the same load."""
    baseline = decode_baseline(path, LivenessResult, command="bench liveness", schema_version=LIVENESS_SCHEMA_VERSION)
    require_same(path, baseline.settings, config, _SAME_SETTINGS)
    then_kinds = {kind.kind: (kind.concurrency, kind.num_requests) for kind in baseline.settings.kinds}
    for kind in config.kinds:
        amount = config.concurrency_of(kind), config.requests_of(kind)
        if then_kinds.get(kind) != amount:
            wanted = f"{amount[1]} requests of {kind}, {amount[0]} at once"
            raise BaselineError(f"The baseline {path} was not measured with {wanted}, as this run is to be")
    return baseline


def find_worse_than_baseline(result: LivenessResult, baseline: LivenessResult, *, tolerance: float) -> list[str]:
    """One line for each median of side A that is worse than the baseline's by more than the tolerance."""
    then = {kind.kind: kind.summary for kind in baseline.sides[0].kinds}
    medians = [
        MedianRatios(kind.kind, "the baseline", divide_medians(kind.summary, then[kind.kind]))
        for kind in result.sides[0].kinds
    ]
    return find_worse(_JUDGED, medians, tolerance=tolerance)


def find_worse_than_others(result: LivenessResult, *, tolerance: float) -> list[str]:
    """One line for each figure in which side A is worse than another side by more than the tolerance."""
    medians = [MedianRatios(ratio.kind, ratio.against, take_medians(ratio.ratios)) for ratio in result.ratios]
    return find_worse(_JUDGED, medians, tolerance=tolerance)
