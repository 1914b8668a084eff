"""The outcome of a start: lines in the log, also why it was slower than earlier ones; files; the history."""

import json
import logging
from collections.abc import Iterator
from typing import Final

from server.types import EngineInfo
from startup.prefetch.messages import PrefetchReport
from startup.probes.start_state import StartState
from startup.timeline.history import EarlierStarts, StartRecord, StartSubject, record_start
from startup.timeline.report import StartReport, build_trace, save_file

logger = logging.getLogger(__name__)

_MIN_EARLIER: Final = 3
"""A median of fewer starts means too little."""
_SLOWER_FACTOR: Final = 1.15
_SLOWER_BY_S: Final = 0.15
_MIN_REASON_S: Final = 0.05
_MAX_REASONS: Final = 3
_COLD: Final = 0.5
"""With a smaller share of the weights in the page cache, the cache counts as cold."""


def save_ready_start(
    state: StartState, address: str, *, info: EngineInfo | None = None, prefetch: PrefetchReport | None = None
) -> None:
    """Logs the phases, writes the requested files and adds the start to the history.

    Args:
        address: where the server listens, as a URL.
        info: report of the embedded engine at readiness; None for vLLM.
        prefetch: None if the prefetch is still running.
    """
    report = state.build_report()
    if prefetch is not None:
        logger.info("%s", prefetch)
    if info is not None:
        _log_engine(info)
    logger.info("phases of this start:\n%s", report.table())
    slower = explain_slowness(report, state.earlier)
    if slower is not None:
        logger.info("%s", slower)
    logger.info("ready after %.2f s: %s", report.total_s, address)
    _save_files(report, state.subject)
    record_start(StartRecord.from_report(report, state.history_key))


def save_failed_start(state: StartState) -> None:
    """Writes the requested files; a failed start does not enter the history."""
    _save_files(state.build_report(), state.subject)


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


def _save_files(report: StartReport, subject: StartSubject) -> None:
    if subject.report_file is not None:
        save_file(subject.report_file, report.to_json(), "start-up report")
    if subject.trace_file is not None:
        save_file(subject.trace_file, json.dumps(build_trace(report)) + "\n", "start-up trace")


def _log_engine(info: EngineInfo) -> None:
    if info.pooling is not None:
        logger.info(
            "%s in %s on %s: %d prompts at once of %d tokens, for %s",
            info.model_type,
            info.dtype,
            info.device,
            info.num_slots,
            info.max_model_len,
            ", ".join(info.pooling.supported_tasks),
        )
        return
    logger.info(
        "%s in %s on %s: %d sequences at once of %d tokens, KV cache of %d tokens (%.1f GiB), %s runner",
        info.model_type,
        info.dtype,
        info.device,
        info.num_slots,
        info.max_model_len,
        info.kv_cache_tokens,
        info.kv_cache_bytes / (1 << 30),
        info.runner,
    )


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
