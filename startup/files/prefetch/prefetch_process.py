"""Starts the helper process that reads files into the page cache, and receives its progress and report."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from startup.files.prefetch.messages import PrefetchJob, PrefetchProgress, PrefetchReport
from startup.files.prefetch.survey import reason_to_skip, survey_files
from startup.processes.helper import Helper, HelperEndedError
from startup.settings.config import PrefetchMode

logger = logging.getLogger(__name__)

_TORCH_LIBRARIES: Final = (
    "libtorch_global_deps.so",
    "libc10.so",
    "libtorch_cpu.so",
    "libtorch_python.so",
    "libc10_cuda.so",
    "libtorch_cuda.so",
)
"""The libraries that `import torch` maps, in this order."""


class PrefetchHandle(AbstractContextManager["PrefetchHandle"]):
    """The launcher's handle of a prefetch. Only one thread may use it. Its owner must close it."""

    def __init__(self, helper: Helper | None, report: PrefetchReport | None = None) -> None:
        self._helper = helper
        self._report = report

    @property
    def pid(self) -> int | None:
        """The pid of the helper process. None if it was not started or has ended."""
        return self._helper.pid if self._helper else None

    def result(self, timeout_s: float = 0.0) -> PrefetchReport | None:
        """Waits for the report. Returns None if the prefetch has not ended within the timeout."""
        deadline = time.monotonic() + timeout_s
        while self._helper is not None:
            if self._receive(self._helper, deadline - time.monotonic()) is None:
                break
        return self._report

    def progress(self) -> Iterator[PrefetchProgress]:
        """Yields progress messages until the report arrives."""
        while self._helper is not None:
            if isinstance(event := self._receive(self._helper), PrefetchProgress):
                yield event

    def close(self) -> None:
        if self._helper is not None:
            self._helper.close()
            self._helper = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self, helper: Helper, timeout_s: float = math.inf) -> object | None:
        """Returns the next event, or None after the timeout. The report is the last event."""
        try:
            event = helper.receive(timeout_s)
        except HelperEndedError as err:
            event = PrefetchReport("failed", f"the helper process ended without a report: {err}")
        if isinstance(event, PrefetchReport):
            self._report = event
            _warn(event)
            self.close()
        return event


def start_prefetch(
    files: Sequence[Path], mode: PrefetchMode = "auto", pages: Path | None = None, **settings: Any
) -> PrefetchHandle:
    """Reads files into the page cache in a helper process, while the launcher imports.

    Returns within a few milliseconds. Never raises, because a start works without a prefetch. `pages` is a
    file that lists parts of files (`startup.files.prefetch.survey`). `settings` are fields of `PrefetchJob`.
    """
    if mode == "off":
        return PrefetchHandle(None, PrefetchReport("off", "it is switched off"))
    if not files and pages is None:
        return PrefetchHandle(None, PrefetchReport("off", "there are no files"))
    record = None if pages is None else str(pages)
    job = PrefetchJob(tuple(map(str, files)), record, is_forced=mode == "on", **settings)
    try:
        if mode == "auto" and (report := _report_nothing_to_read(job)):
            return PrefetchHandle(None, report)
        job = job._replace(begin_ns=time.monotonic_ns())
        return PrefetchHandle(Helper("prefetch", "startup.files.prefetch.worker:run", job))
    except OSError as err:
        report = PrefetchReport("failed", f"the helper process cannot be started: {err.strerror}")
        _warn(report)
        return PrefetchHandle(None, report)


def _report_nothing_to_read(job: PrefetchJob) -> PrefetchReport | None:
    """Returns a report if a quick survey finds nothing to read. This saves the 50 ms of a helper's start."""
    survey = survey_files(job, is_quick=True)
    reason = reason_to_skip(survey, is_forced=False)
    if reason is None or survey.problems:
        return None
    return PrefetchReport("off", reason, survey.num_files, survey.total_bytes, survey.resident_bytes)


def _warn(report: PrefetchReport) -> None:
    if report.state == "failed":
        logger.warning("no prefetch: %s", report.reason)
    for problem in report.problems:
        logger.warning("prefetch: %s", problem)


def plan_libraries() -> tuple[Path, ...]:
    """Finds torch's large shared libraries without an import. Reading them helps if they are not resident."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return ()
    folder = Path(spec.origin).parent / "lib"
    return tuple(path for name in _TORCH_LIBRARIES if (path := folder / name).is_file())
