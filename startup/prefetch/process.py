"""Starts the helper process that reads files into the page cache, and receives its progress and report."""

import json
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from startup.prefetch.messages import Job, PrefetchProgress, PrefetchReport
from startup.prefetch.options import PrefetchOptions
from startup.prefetch.survey import reason_to_skip, survey_files
from startup.processes import group_signals

logger = logging.getLogger(__name__)

_ROOT: Final = Path(__file__).parents[2]
_CODE: Final = "import sys; sys.path.append(sys.argv[1]); from startup.prefetch.worker import main; main(sys.argv[2:])"
"""This project's folder is last on the path, so that it hides no module of the standard library."""

_TORCH_LIBRARIES: Final = (
    "libtorch_global_deps.so",
    "libc10.so",
    "libtorch_cpu.so",
    "libtorch_python.so",
    "libc10_cuda.so",
    "libtorch_cuda.so",
)
"""The libraries that `import torch` maps, in its order."""


class PrefetchHandle:
    """The launcher's handle of a prefetch; used by one thread and closed by its owner."""

    def __init__(self, helper: "subprocess.Popen[bytes] | None", report: PrefetchReport | None = None) -> None:
        self._helper = helper
        self._report = report
        self._received = b""

    @property
    def pid(self) -> int | None:
        """The helper process; None if it was not started or has ended."""
        return self._helper.pid if self._helper else None

    def result(self, timeout_s: float = 0.0) -> PrefetchReport | None:
        """Waits for the report; None if the prefetch has not ended within the timeout."""
        deadline = time.monotonic() + timeout_s
        while self._report is None and self._helper is not None:
            message = self._receive(self._helper, max(deadline - time.monotonic(), 0.0))
            if message is None:
                return None
            self._take(message)
        return self._report

    def progress(self) -> Iterator[PrefetchProgress]:
        """Yields progress messages until the report arrives."""
        while self._report is None and self._helper is not None:
            message = self._receive(self._helper, None)
            if message and "progress" in message:
                yield PrefetchProgress(**message["progress"])
            else:
                self._take(message or {})

    def close(self) -> None:
        """Stops a running prefetch."""
        if self._helper is not None:
            with self._helper as helper:
                helper.kill()
            self._helper = None

    def __enter__(self) -> "PrefetchHandle":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self, helper: "subprocess.Popen[bytes]", timeout_s: float | None) -> dict[str, Any] | None:
        """The next message; an empty one at the end, None after the timeout."""
        assert helper.stdout is not None
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._received:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if not select.select([helper.stdout], [], [], left)[0]:
                return None
            chunk = helper.stdout.read(1 << 16)
            if not chunk:
                return {}
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _take(self, message: dict[str, Any]) -> None:
        if "report" in message:
            self._report = PrefetchReport.from_fields(message["report"])
        elif not message:
            self._report = PrefetchReport("failed", "the helper process ended without a report")
        if self._report is not None:
            _warn(self._report)
            self.close()


def start_prefetch(
    files: Sequence[Path], options: PrefetchOptions | None = None, pages: Path | None = None
) -> PrefetchHandle:
    """Reads files into the page cache in a helper process, while the launcher imports.

    Returns within a few milliseconds, and never raises, since a start works without a prefetch.

    Args:
        files: read as a whole, in this order.
        options: how.
        pages: a record of parts of files (`startup.prefetch.survey`), which are read first.
    """
    options = options or PrefetchOptions()
    if options.mode == "off":
        return PrefetchHandle(None, PrefetchReport("off", "it is switched off"))
    if not files and pages is None:
        return PrefetchHandle(None, PrefetchReport("off", "there are no files"))
    paths, record = [str(path) for path in files], None if pages is None else str(pages)
    try:
        if options.mode == "auto" and (report := _report_nothing_to_read(paths, options, record)):
            return PrefetchHandle(None, report)
        return PrefetchHandle(_start_helper(paths, options, record))
    except OSError as err:
        report = PrefetchReport("failed", f"the helper process cannot be started: {err.strerror}")
        _warn(report)
        return PrefetchHandle(None, report)


def _report_nothing_to_read(paths: Sequence[str], options: PrefetchOptions, pages: str | None) -> PrefetchReport | None:
    """A report without a helper, which takes 50 ms, if a quick survey finds nothing to read."""
    survey = survey_files(paths, options.block_bytes, pages, is_quick=True)
    reason = reason_to_skip(survey, is_forced=False)
    if reason is None or survey.problems:
        return None
    return PrefetchReport("off", reason, survey.num_files, survey.total_bytes, survey.resident_bytes)


def _start_helper(paths: Sequence[str], options: PrefetchOptions, pages: str | None) -> "subprocess.Popen[bytes]":
    """Starts the process, without site-packages; raises OSError."""
    job = Job(
        num_threads=options.num_threads,
        block_bytes=options.block_bytes,
        memory_bytes=options.memory_bytes,
        is_forced=options.mode == "on",
        progress_interval_s=options.progress_interval_s,
        parent_pid=os.getpid(),
        begin_ns=time.monotonic_ns(),
        pages=pages,
    )
    command = [sys.executable, "-I", "-S", "-c", _CODE, str(_ROOT), job.to_argument(), *paths]
    with group_signals.blocked():  # until the process ignores them
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0)


def _warn(report: PrefetchReport) -> None:
    if report.state == "failed":
        logger.warning("no prefetch: %s", report.reason)
    for problem in report.problems:
        logger.warning("prefetch: %s", problem)


def plan_libraries() -> tuple[Path, ...]:
    """The large shared libraries of torch, found without importing it; they matter with a cold page cache."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return ()
    folder = Path(spec.origin).parent / "lib"
    return tuple(path for name in _TORCH_LIBRARIES if (path := folder / name).is_file())
