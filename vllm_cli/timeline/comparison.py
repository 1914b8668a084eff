"""Compares two starts phase by phase."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from startup.timeline.report import StartReport


class PhaseDifference(NamedTuple):
    """One phase of two starts; 0 s for a start without the phase."""

    process: str
    name: str
    before_s: float
    after_s: float

    @property
    def difference_s(self) -> float:
        """Positive if the second start was slower."""
        return self.after_s - self.before_s

    @property
    def key(self) -> str:
        """The phase's name across processes and starts."""
        return f"{self.process}:{self.name}"


def compare_phases(before: StartReport, after: StartReport) -> list[PhaseDifference]:
    """Every phase of either start, in the first one's order; the differences add up to the totals'."""
    earlier = {phase.key: phase for phase in before.phases}
    later = {phase.key: phase for phase in after.phases}
    differences = []
    for key in dict.fromkeys((*earlier, *later)):
        phase = earlier.get(key) or later[key]
        times = [phases[key].took_s if key in phases else 0.0 for phases in (earlier, later)]
        differences.append(PhaseDifference(phase.process, phase.name, *times))
    return differences


def comparison_to_dict(before: StartReport, after: StartReport) -> dict[str, Any]:
    """The comparison for JSON."""
    return {
        "schema": "vllm-cli/startup-comparison",
        "schema_version": 1,
        "total_s": {"before": before.total_s, "after": after.total_s, "difference": after.total_s - before.total_s},
        "phases": [
            {**difference._asdict(), "difference_s": round(difference.difference_s, 6)}
            for difference in compare_phases(before, after)
        ],
    }


def write_comparison(before: StartReport, after: StartReport) -> Iterator[str]:
    """The lines of a plain-text table."""
    yield " before s   after s  change s  process     phase"
    for phase in compare_phases(before, after):
        yield f"{_figures(phase.before_s, phase.after_s)}  {phase.process:<10}  {phase.name}"
    yield f"{_figures(before.total_s, after.total_s)}  total"


def _figures(before_s: float, after_s: float) -> str:
    return f"{before_s:9.3f} {after_s:9.3f} {after_s - before_s:+9.3f}"
