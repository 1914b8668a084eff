"""Compares a start with earlier ones and explains in one line why it was slower."""

from collections.abc import Iterator
from typing import Final

from startup.timeline.history import EarlierStarts
from startup.timeline.report import StartReport

_MIN_EARLIER: Final = 3
"""A median of fewer starts means too little."""
_SLOWER_FACTOR: Final = 1.15
_SLOWER_BY_S: Final = 0.15
_MIN_REASON_S: Final = 0.05
_MAX_REASONS: Final = 3
_COLD: Final = 0.5
"""With a smaller share of the weights in the page cache, the cache counts as cold."""


def explain_slowness(report: StartReport, earlier: EarlierStarts | None) -> str | None:
    """`slower than your median (3.1 s against 2.3 s): …`; None if it was not slower or cannot be compared."""
    if earlier is None or len(earlier.records) < _MIN_EARLIER:
        return None
    excess_s = report.total_s - earlier.total_s
    if report.total_s < earlier.total_s * _SLOWER_FACTOR or excess_s < _SLOWER_BY_S:
        return None
    line = f"slower than your median ({report.total_s:.1f} s against {earlier.total_s:.1f} s)"
    reasons = [*_slower_phases(report, earlier), *_cold_cache(report, earlier)]
    return f"{line}: {'; '.join(reasons)}" if reasons else line


def _slower_phases(report: StartReport, earlier: EarlierStarts) -> list[str]:
    """The phases that took longer, the largest difference first, without those that hardly matter."""
    excess = {phase.key: phase.took_s - earlier.phases.get(phase.key, 0.0) for phase in report.phases}
    least_s = max(_MIN_REASON_S, 0.15 * (report.total_s - earlier.total_s))
    worst = sorted((key for key in excess if excess[key] >= least_s), key=lambda key: -excess[key])
    return [f"{_describe(key)} took {excess[key]:.1f} s longer" for key in worst[:_MAX_REASONS]]


def _cold_cache(report: StartReport, earlier: EarlierStarts) -> Iterator[str]:
    page_cache = report.facts.page_cache
    if page_cache is None or page_cache.resident_share >= _COLD:
        return
    if earlier.resident_share is None or earlier.resident_share >= _COLD:
        yield f"page cache was cold ({page_cache.resident_share:.0%} of the weights in memory)"


def _describe(key: str) -> str:
    """`engine:load_weights` becomes "engine load weights"."""
    return key.replace(":", " ").replace("_", " ")
