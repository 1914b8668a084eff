"""Says where a start was slower than in a baseline file or than the other side's."""

from pathlib import Path

from vllm_cli.bench.baseline import decode_baseline
from vllm_cli.bench.errors import BaselineError
from vllm_cli.bench.startup_config import StartupBenchConfig
from vllm_cli.bench.startup_results import STARTUP_SCHEMA_VERSION, StartupResult

CHECKED = "first_token_s"
"""The figure that decides: the others are on its way."""


def read_startup_baseline(path: Path, config: StartupBenchConfig) -> StartupResult:
    """Read an earlier run's `--json` file and make sure that it measured the same thing."""
    baseline = decode_baseline(path, StartupResult, command="bench startup", schema_version=STARTUP_SCHEMA_VERSION)
    endpoint = baseline.settings.endpoint
    if endpoint != config.endpoint:
        raise BaselineError(
            f"The baseline {path} was measured with endpoint {endpoint}, this run has {config.endpoint}"
        )
    if missing := [state for state in config.states if state not in baseline.settings.states]:
        raise BaselineError(f"The baseline {path} has no starts from {', '.join(missing)}")
    return baseline


def find_slower_starts_than_baseline(result: StartupResult, baseline: StartupResult, *, tolerance: float) -> list[str]:
    """One line for each state from which side A's median is worse than the baseline's by more than the tolerance."""
    then = {state.state: state.summary[CHECKED].median for state in baseline.sides[0].states}
    ratios = {state.state: state.summary[CHECKED].median / then[state.state] for state in result.sides[0].states}
    return [_complain(state, ratio, "the baseline") for state, ratio in ratios.items() if ratio > 1 + tolerance]


def find_slower_starts_than_others(result: StartupResult, *, tolerance: float) -> list[str]:
    """One line for each state from which side A is slower than another side by more than the tolerance."""
    return [
        _complain(comparison.state, comparison.ratios[CHECKED].median, comparison.against)
        for comparison in result.ratios
        if comparison.ratios[CHECKED].median > 1 + tolerance
    ]


def _complain(state: str, ratio: float, against: str) -> str:
    return f"from {state}: the time to the first token is {ratio:.2f}x that of {against}"
