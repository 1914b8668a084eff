"""The helper process: surveys the files, reads missing blocks, and reports to the launcher in JSON lines.

It shares no Python state and no interpreter lock with the launcher, which kills it to stop it. Standard
output takes the lines. The process is started without the site module, so it imports only parts of the
standard library that load in a few milliseconds.
"""

import json
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from startup.prefetch.messages import MAX_PROBLEMS, Job, PrefetchProgress, PrefetchReport
from startup.prefetch.reader import BlockReader
from startup.prefetch.survey import RESERVE_BYTES, Survey, available_bytes, decide, survey_files
from startup.processes import death_pipe, group_signals

_TICK_S = 0.05
_NICENESS = 10
"""Gives priority to the launcher's imports, also for disk accesses (ioprio_set(2))."""
_PROCESS_NAME = "vllm-prefetch"


def main(arguments: Sequence[str]) -> None:
    """Runs the job on the paths and exits when everything is read."""
    entry_ns = time.monotonic_ns()
    job = Job.from_argument(arguments[0])
    death_pipe.follow_parent(job.parent_pid)
    _configure_process()
    try:
        report = _Prefetch(job, entry_ns).run(arguments[1:])
    except Exception as err:  # noqa: BLE001 - the boundary of the process: the launcher gets the error
        report = PrefetchReport("failed", f"{type(err).__name__}: {err}")
    _send("report", report._asdict())
    os._exit(0)  # a thread may still wait for the disk


class _Prefetch:
    def __init__(self, job: Job, entry_ns: int) -> None:
        self._job = job
        self._spans = [("prefetch_start", job.begin_ns, entry_ns)]
        self._next_progress_ns = entry_ns

    def run(self, paths: Sequence[str]) -> PrefetchReport:
        begin_ns = time.monotonic_ns()
        survey = survey_files(paths, self._job.block_bytes, self._job.pages)
        decision = decide(survey, self._job)
        self._spans.append(("prefetch_survey", begin_ns, time.monotonic_ns()))
        report = PrefetchReport(
            state="off" if decision.is_off else "done",
            reason=decision.reason,
            num_files=survey.num_files,
            total_bytes=survey.total_bytes,
            resident_bytes=survey.resident_bytes,
            problems=survey.problems[:MAX_PROBLEMS],
            spans=tuple(self._spans),
        )
        return report if decision.is_off else self._read(decision.survey, report)

    def _read(self, survey: Survey, report: PrefetchReport) -> PrefetchReport:
        begin_ns = time.monotonic_ns()
        reader = BlockReader(survey.blocks, min(self._job.num_threads, len(survey.blocks)))
        reason = self._supervise(reader, survey, begin_ns)
        end_ns = time.monotonic_ns()
        return report._replace(
            state="stopped" if reason else "done",
            reason=reason or report.reason,
            read_bytes=reader.read_bytes,
            read_s=(end_ns - begin_ns) / 1e9,
            problems=(*report.problems, *reader.problems)[:MAX_PROBLEMS],
            spans=(*report.spans, ("prefetch_read", begin_ns, end_ns)),
        )

    def _supervise(self, reader: BlockReader, survey: Survey, begin_ns: int) -> str | None:
        """Waits for the reader; returns why it was stopped, None if it has read everything."""
        while not reader.wait(_TICK_S):
            if self._is_memory_short(reader, survey):
                return "memory is short"
            self._send_progress(reader, survey.due_bytes, begin_ns)
        return None if reader.keeps_pages else "the page cache evicts pages right after they are read"

    def _is_memory_short(self, reader: BlockReader, survey: Survey) -> bool:
        available = available_bytes(self._job)
        return available is not None and available - survey.resident_bytes - reader.read_bytes < RESERVE_BYTES // 4

    def _send_progress(self, reader: BlockReader, due_bytes: int, begin_ns: int) -> None:
        now_ns = time.monotonic_ns()
        if self._job.progress_interval_s is None or now_ns < self._next_progress_ns:
            return
        self._next_progress_ns = now_ns + int(self._job.progress_interval_s * 1e9)
        _send("progress", PrefetchProgress(reader.read_bytes, due_bytes, (now_ns - begin_ns) / 1e9)._asdict())


def _configure_process() -> None:
    """Ignores group signals, on which the launcher acts, and lowers the priority of CPU and disk."""
    group_signals.ignore()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.nice(_NICENESS)
    with suppress(OSError):
        Path("/proc/self/comm").write_text(_PROCESS_NAME, encoding="ascii")


def _send(kind: str, fields: dict[str, object]) -> None:
    os.write(1, json.dumps({kind: fields}).encode() + b"\n")
