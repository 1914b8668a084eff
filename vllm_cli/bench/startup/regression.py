"""Finds the states from which side A started slower than in a baseline or than another side."""

from pathlib import Path

from vllm_cli.bench.baseline import decode_baseline, require_same
from vllm_cli.bench.errors import BaselineError
from vllm_cli.bench.figures import Metric
from vllm_cli.bench.startup.config import StartupBenchConfig
from vllm_cli.bench.startup.results import STARTUP_SCHEMA_VERSION, StartupResult
from vllm_cli.bench.verdict import MedianRatios, divide_medians, find_worse, take_medians

_JUDGED = Metric("first_token_s", "the time to the first token")
"""The figure that is judged: it contains the others."""


def read_startup_baseline(path: Path, config: StartupBenchConfig) -> StartupResult:
    """Reads an earlier run's `--json` file and checks that it measured the same starts."""
    baseline = decode_baseline(path, StartupResult, command="bench startup", schema_version=STARTUP_SCHEMA_VERSION)
    require_same(path, baseline.settings, config, ["endpoint"])
    if missing := [state for state in config.states if state not in baseline.settings.states]:
        raise BaselineError(f"The baseline {path} has no starts from {', '.join(missing)}")
    return baseline


def find_worse_than_baseline(result: StartupResult, baseline: StartupResult, *, tolerance: float) -> list[str]:
    """One line for each state from which A's median exceeds the baseline's by more than the tolerance."""
    then = {state.state: state.summary for state in baseline.sides[0].states}
    medians = [
        MedianRatios(f"from {state.state}", "the baseline", divide_medians(state.summary, then[state.state]))
        for state in result.sides[0].states
    ]
    return find_worse([_JUDGED], medians, tolerance=tolerance)


def find_worse_than_others(result: StartupResult, *, tolerance: float) -> list[str]:
    """One line for each state from which side A is slower than another side by more than the tolerance."""
    medians = [
        MedianRatios(f"from {ratio.state}", ratio.against, take_medians(ratio.ratios)) for ratio in result.ratios
    ]
    return find_worse([_JUDGED], medians, tolerance=tolerance)
