"""Starts the helper process that reads files into the page cache, and receives its progress and report."""

import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from envs import foreign
from server.machine.page_cache import is_cheap
from startup.prefetch.messages import LIFE_FD, Job, PrefetchProgress, PrefetchReport
from startup.prefetch.options import PrefetchOptions
from startup.prefetch.survey import reason_to_skip, survey_files
from startup.processes import group_signals

logger = logging.getLogger(__name__)

_ROOT: Final = Path(__file__).parents[2]
_CODE: Final = "import sys; sys.path.append(sys.argv[1]); from startup.prefetch.worker import main; main(sys.argv[2:])"
"""This project's folder is last on the path, so that it hides no module of the standard library."""
_GRACE_S: Final = 0.5
_POLL_S: Final = 0.005


class PrefetchHandle:
    """The launcher's handle of a prefetch; used by one thread and closed by its owner."""

    def __init__(self, helper: "_Helper | None", report: PrefetchReport | None = None) -> None:
        self._helper = helper
        self._report = report

    @property
    def pid(self) -> int | None:
        """The helper process; None if it was not started or has ended."""
        return self._helper.pid if self._helper else None

    def result(self, timeout_s: float = 0.0) -> PrefetchReport | None:
        """Waits for the report; None if the prefetch has not ended within the timeout."""
        deadline = time.monotonic() + timeout_s
        while self._report is None and self._helper is not None:
            message = self._helper.receive(max(deadline - time.monotonic(), 0.0))
            if message is None:
                return None
            self._take(message)
        return self._report

    def progress(self) -> Iterator[PrefetchProgress]:
        """Yields progress messages until the report arrives."""
        while self._report is None and self._helper is not None:
            message = self._helper.receive(None)
            if message and "progress" in message:
                yield PrefetchProgress(**message["progress"])
            else:
                self._take(message or {})

    def close(self) -> None:
        """Stops a running prefetch; takes at most half a second."""
        if self._helper is not None:
            self._helper.close()
            self._helper = None

    def __enter__(self) -> "PrefetchHandle":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        pages: a record of parts of files (`startup.prefetch.pages`), which are read first.
    """
    options = options or PrefetchOptions()
    if options.mode == "off":
        return PrefetchHandle(None, PrefetchReport("off", "it is switched off"))
    if not files and pages is None:
        return PrefetchHandle(None, PrefetchReport("off", "there are no files"))
    try:
        if options.mode == "auto" and (report := _report_nothing_to_read(files, options, pages)):
            return PrefetchHandle(None, report)
        return PrefetchHandle(_Helper(files, options, pages))
    except OSError as err:
        report = PrefetchReport("failed", f"the helper process cannot be started: {err.strerror}")
        _warn(report)
        return PrefetchHandle(None, report)


def _report_nothing_to_read(
    files: Sequence[Path], options: PrefetchOptions, pages: Path | None
) -> PrefetchReport | None:
    """A report without a helper, which takes 50 ms, if a cheap survey finds nothing to read."""
    paths = [str(path) for path in files]
    with suppress(OSError):
        if not is_cheap(paths[0] if paths else str(pages)):
            return None
    survey = survey_files(paths, options.block_bytes, _text(pages))
    reason = reason_to_skip(survey, is_forced=False)
    if reason is None or survey.problems:
        return None
    return PrefetchReport(
        "off",
        reason,
        num_files=survey.num_files,
        total_bytes=survey.total_bytes,
        resident_bytes=survey.resident_bytes,
    )


class _Helper:
    """The process and the three pipes to it."""

    def __init__(self, files: Sequence[Path], options: PrefetchOptions, pages: Path | None) -> None:
        begin_ns = time.monotonic_ns()
        job = Job(
            num_threads=options.num_threads,
            block_bytes=options.block_bytes,
            reserve_bytes=options.reserve_bytes,
            memory_bytes=options.memory_bytes,
            is_forced=options.mode == "on",
            progress_interval_s=options.progress_interval_s,
            parent_pid=os.getpid(),
            begin_ns=begin_ns,
            pages=_text(pages),
        )
        control_fd, self._control_fd = os.pipe()
        self._report_fd, report_fd = os.pipe()
        life_fd, self._life_fd = os.pipe()
        try:
            self.pid = _spawn([job.to_argument(), *map(str, files)], control_fd, report_fd, life_fd)
        except OSError:
            os.close(self._control_fd)
            os.close(self._report_fd)
            os.close(self._life_fd)
            raise
        finally:
            os.close(control_fd)
            os.close(report_fd)
            os.close(life_fd)
        self._received = b""

    def receive(self, timeout_s: float | None) -> dict[str, Any] | None:
        """The next message; an empty one at the end, None after the timeout."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._received:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if not select.select([self._report_fd], [], [], left)[0]:
                return None
            chunk = os.read(self._report_fd, 1 << 16)
            if not chunk:
                return {}
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Stops the helper with a byte, since a forked process may hold the pipe's write end open."""
        with suppress(OSError):
            os.write(self._control_fd, b"x")
        os.close(self._control_fd)
        os.close(self._report_fd)
        self._wait()
        os.close(self._life_fd)

    def _wait(self) -> None:
        deadline = time.monotonic() + _GRACE_S
        while not self._has_ended():
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return
            time.sleep(_POLL_S)

    def _has_ended(self) -> bool:
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] != 0
        except ChildProcessError:  # reaped by other code of this process
            return True


def _spawn(arguments: list[str], control_fd: int, report_fd: int, life_fd: int) -> int:
    """Starts the process with three descriptors and standard error, and without site-packages."""
    places = ((control_fd, 0), (report_fd, 1), (life_fd, LIFE_FD))
    actions = [(os.POSIX_SPAWN_DUP2, fd, place) for fd, place in places]
    command = [sys.executable, "-I", "-S", "-c", _CODE, str(_ROOT), *arguments]
    mask = group_signals.GROUP_SIGNALS  # blocked until the process ignores them
    return os.posix_spawn(sys.executable, command, foreign.snapshot(), file_actions=actions, setsigmask=mask)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _warn(report: PrefetchReport) -> None:
    if report.state == "failed":
        logger.warning("no prefetch: %s", report.reason)
    for problem in report.problems:
        logger.warning("prefetch: %s", problem)
