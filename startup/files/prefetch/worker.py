"""The job of the prefetch's helper process: surveys the files, reads missing blocks, and reports.

This module imports only parts of the standard library that load in a few milliseconds.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from base.machine.page_cache import ResidencyProbe
from startup.files.prefetch.messages import MAX_PROBLEMS, PrefetchJob, PrefetchProgress, PrefetchReport
from startup.files.prefetch.survey import RESERVE_BYTES, Block, Survey, available_bytes, decide, survey_files
from startup.processes.helper import Send

_TICK_S = 0.05
_NICENESS = 10
"""Gives the launcher's imports priority over this process, also for disk accesses (ioprio_set(2))."""

_FALLBACK_BYTES = 256 << 10
_KEPT_SHARE = 0.5


def run(job: PrefetchJob, send: Send) -> None:
    """Reads the job's files. Sends the progress and the report."""
    os.nice(_NICENESS)
    send(prefetch(job, send))


def prefetch(job: PrefetchJob, send: Send) -> PrefetchReport:
    """Reads the job's files. Sends the progress."""
    entry_ns = time.monotonic_ns()
    survey = decide(survey_files(job), job)
    begin_ns = time.monotonic_ns()
    report = PrefetchReport(
        state="done" if survey.blocks else "off",
        reason=survey.reason,
        num_files=survey.num_files,
        total_bytes=survey.total_bytes,
        resident_bytes=survey.resident_bytes,
        problems=survey.problems[:MAX_PROBLEMS],
        unknown_bytes=survey.unknown_bytes,
        spans=(("prefetch_start", job.begin_ns, entry_ns), ("prefetch_survey", entry_ns, begin_ns)),
    )
    if not survey.blocks:
        return report
    reader = BlockReader(survey.blocks, job.num_threads)
    reason = _supervise(reader, survey, job, begin_ns, send)
    end_ns = time.monotonic_ns()
    return report._replace(
        state="stopped" if reason else "done",
        reason=reason or report.reason,
        read_bytes=reader.read_bytes,
        read_s=(end_ns - begin_ns) / 1e9,
        problems=(*report.problems, *reader.problems)[:MAX_PROBLEMS],
        spans=(*report.spans, ("prefetch_read", begin_ns, end_ns)),
    )


class BlockReader:
    """Reads blocks on several threads, in the given order. Skips blocks that are in the page cache by now."""

    def __init__(self, blocks: Iterable[Block], num_threads: int) -> None:
        self._blocks = iter(blocks)
        self._lock = threading.Lock()
        self._unreadable: set[str] = set()
        self.read_bytes = 0
        """Bytes that were missing and have become resident, including the kernel's read-ahead."""
        self.problems: list[str] = []
        self.keeps_pages = True
        """False once the kernel has evicted most of a block right after the block was read."""
        names = [f"prefetch-{number}" for number in range(num_threads)]
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Waits for all threads. Returns whether they have ended in time."""
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(deadline_s - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        path = ""
        with ExitStack() as opened:
            while (block := self._next_block()) is not None:
                try:
                    if block.path != path:
                        opened.close()
                        path = ""
                        probe, fd = opened.enter_context(_opened(block.path))
                        path = block.path
                    self._read(block, probe, fd)
                except OSError as err:
                    self._record_problem(block, err)

    def _next_block(self) -> Block | None:
        with self._lock:
            if not self.keeps_pages:
                return None
            return next((block for block in self._blocks if block.path not in self._unreadable), None)

    def _read(self, block: Block, probe: ResidencyProbe, fd: int) -> None:
        if probe.resident_bytes(block.offset, block.length) < block.length:
            read_block(fd, block)
            if probe.method is not None:
                kept_bytes = probe.resident_bytes(block.offset, block.length)
                self.keeps_pages &= kept_bytes >= block.length * _KEPT_SHARE
        with self._lock:
            self.read_bytes += block.missing_bytes

    def _record_problem(self, block: Block, err: OSError) -> None:
        with self._lock:
            if block.path not in self._unreadable and len(self.problems) < MAX_PROBLEMS:
                self.problems.append(f"{block.path}: {err.strerror}")
            self._unreadable.add(block.path)


@contextmanager
def _opened(path: str) -> Iterator[tuple[ResidencyProbe, int]]:
    """Yields a descriptor for one thread alone, so that the kernel reads ahead for each thread."""
    with ResidencyProbe(path) as probe, Path(path).open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        yield probe, file.fileno()


def read_block(fd: int, block: Block) -> None:
    """Reads a block into the page cache, if possible without copying it."""
    position, end = block.offset, block.offset + block.length
    try:
        with Path(os.devnull).open("wb", buffering=0) as null:
            while position < end:
                sent = os.sendfile(null.fileno(), fd, position, end - position)
                if not sent:
                    break
                position += sent
    except OSError:  # the file system has no splice; a disk error is raised again here
        buffer = memoryview(bytearray(_FALLBACK_BYTES))
        while position < end and (num_read := os.preadv(fd, [buffer], position)):
            position += num_read


def _supervise(reader: BlockReader, survey: Survey, job: PrefetchJob, begin_ns: int, send: Send) -> str | None:
    """Waits for the reader. Returns why the reader ended early, or None if it has read everything."""
    next_ns = begin_ns
    while not reader.wait(_TICK_S):
        available, now_ns = available_bytes(job), time.monotonic_ns()
        if available is not None and available - survey.resident_bytes - reader.read_bytes < RESERVE_BYTES // 4:
            return "memory is short"
        if job.progress_interval_s is not None and now_ns >= next_ns:
            next_ns = now_ns + int(job.progress_interval_s * 1e9)
            send(PrefetchProgress(reader.read_bytes, survey.due_bytes, (now_ns - begin_ns) / 1e9))
    return None if reader.keeps_pages else "the page cache evicts pages right after they are read"
