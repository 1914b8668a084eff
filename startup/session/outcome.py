"""Records the outcome of a start in the log, in files, and in the history."""

import logging

from base.machine.files import write_whole
from server.terms.types import EngineInfo
from startup.files.prefetch.messages import PrefetchReport
from startup.reports.timeline.history import StartRecord, StartSubject, record_start
from startup.reports.timeline.report import StartReport
from startup.session.start_state import StartState

logger = logging.getLogger(__name__)


def save_ready_start(
    state: StartState, address: str, *, info: EngineInfo | None = None, prefetch: PrefetchReport | None = None
) -> None:
    """Logs the phases, writes the report file if one was requested, and adds the start to the history.

    `info` is None with vLLM. `prefetch` is None while the prefetch is still running.
    """
    report = state.build_report()
    if prefetch is not None:
        logger.info("%s", prefetch)
    if info is not None:
        _log_engine(info)
    if state.facts.compiled_model is not None:
        logger.info("compiled model: %s", state.facts.compiled_model["text"])
    logger.info("phases of this start:\n%s", report.table())
    logger.info("ready after %.2f s (%s): %s", report.total_s, state.info(), address)
    _save_file(report, state.subject)
    record_start(state.history_key, StartRecord.from_report(report))


def save_failed_start(state: StartState) -> None:
    """Writes the report file if one was requested. A failed start does not enter the history."""
    _save_file(state.build_report(), state.subject)


def _save_file(report: StartReport, subject: StartSubject) -> None:
    """Writes the report file. If this fails, logs a warning, and the start goes on."""
    if subject.report_file is not None:
        try:
            write_whole(subject.report_file, report.to_json())
        except OSError as err:
            logger.warning("the start-up report could not be written to %s: %s", subject.report_file, err.strerror)


def _log_engine(info: EngineInfo) -> None:
    model, length = f"{info.model_type} in {info.dtype} on {info.device}", info.max_model_len
    if info.pooling is not None:
        tasks = ", ".join(info.pooling.supported_tasks)
        logger.info("%s: %d prompts at once of %d tokens, for %s", model, info.num_slots, length, tasks)
        return
    cache = f"KV cache of {info.kv_cache_tokens} tokens ({info.kv_cache_bytes / (1 << 30):.1f} GiB)"
    logger.info(
        "%s: %d sequences at once of %d tokens, %s, %s runner", model, info.num_slots, length, cache, info.runner
    )
