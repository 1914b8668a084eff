"""The job of the prefetch's helper process: surveys the files, reads missing blocks, and reports.

This module imports only parts of the standard library that load in a few milliseconds.
"""

import os
import threading
import time
from collections.abc import Iterable

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
    send(_Prefetch(job, send).run())


class BlockReader:
    """Reads blocks on several threads, in the given order. Skips blocks that have become resident meanwhile.

    Each thread has its own descriptors, so that the kernel reads ahead for each thread.
    """

    def __init__(self, blocks: Iterable[Block], num_threads: int) -> None:
        self._blocks = iter(blocks)
        self._lock = threading.Lock()
        self._num_running = num_threads
        self._has_ended = threading.Event()
        self._unreadable: set[str] = set()
        self.read_bytes = 0
        """Bytes that were missing and have become resident, including the kernel's read-ahead."""
        self.problems: list[str] = []
        self.keeps_pages = True
        """False once the kernel has evicted most of a block right after the block was read."""
        for number in range(num_threads):
            threading.Thread(target=self._run, name=f"prefetch-{number}", daemon=True).start()

    def wait(self, timeout_s: float) -> bool:
        """Waits for all threads. Returns whether they have ended in time."""
        return self._has_ended.wait(timeout_s)

    def _run(self) -> None:
        try:
            self._read_blocks(_OpenFile())
        finally:
            with self._lock:
                self._num_running -= 1
                if self._num_running == 0:
                    self._has_ended.set()

    def _read_blocks(self, file: "_OpenFile") -> None:
        while (block := self._next_block()) is not None:
            try:
                self._read_block(block, file)
            except OSError as err:
                self._record_problem(block, err)
        file.close()

    def _next_block(self) -> Block | None:
        with self._lock:
            if not self.keeps_pages:
                return None
            return next((block for block in self._blocks if block.path not in self._unreadable), None)

    def _read_block(self, block: Block, file: "_OpenFile") -> None:
        file.open(block.path)
        if file.resident_bytes(block) < block.length:
            file.read(block)
            if file.is_residency_known:
                self.keeps_pages &= file.resident_bytes(block) >= block.length * _KEPT_SHARE
        with self._lock:
            self.read_bytes += block.missing_bytes

    def _record_problem(self, block: Block, err: OSError) -> None:
        with self._lock:
            if block.path not in self._unreadable and len(self.problems) < MAX_PROBLEMS:
                self.problems.append(f"{block.path}: {err.strerror}")
            self._unreadable.add(block.path)


class _OpenFile:
    def __init__(self) -> None:
        self._path: str | None = None
        self._fd = -1
        self._probe: ResidencyProbe | None = None
        self._null_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._can_send = True

    def open(self, path: str) -> None:
        if path == self._path:
            return
        self._close_file()
        self._probe = ResidencyProbe(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self._path = path

    @property
    def is_residency_known(self) -> bool:
        return self._probe is not None and self._probe.method is not None

    def resident_bytes(self, block: Block) -> int:
        return self._probe.resident_bytes(block.offset, block.length) if self._probe else 0

    def read(self, block: Block) -> None:
        if self._can_send:
            try:
                self._send(block)
            except OSError:
                self._can_send = False  # the file system has no splice; a disk error is raised again below
            else:
                return
        self._copy(block)

    def _send(self, block: Block) -> None:
        position, end = block.offset, block.offset + block.length
        while position < end and (sent := os.sendfile(self._null_fd, self._fd, position, end - position)):
            position += sent

    def _copy(self, block: Block) -> None:
        buffer = memoryview(bytearray(_FALLBACK_BYTES))
        position, end = block.offset, block.offset + block.length
        while position < end and (num_read := os.preadv(self._fd, [buffer], position)):
            position += num_read

    def close(self) -> None:
        self._close_file()
        os.close(self._null_fd)

    def _close_file(self) -> None:
        if self._probe is not None:
            self._probe.close()
        if self._fd >= 0:
            os.close(self._fd)
        self._probe, self._fd, self._path = None, -1, None


class _Prefetch:
    def __init__(self, job: PrefetchJob, send: Send) -> None:
        self._job = job
        self._send = send
        self._next_progress_ns = 0

    def run(self) -> PrefetchReport:
        entry_ns = time.monotonic_ns()
        survey = survey_files(self._job)
        decision = decide(survey, self._job)
        spans = (("prefetch_start", self._job.begin_ns, entry_ns), ("prefetch_survey", entry_ns, time.monotonic_ns()))
        report = PrefetchReport(
            state="off" if decision.is_off else "done",
            reason=decision.reason,
            num_files=survey.num_files,
            total_bytes=survey.total_bytes,
            resident_bytes=survey.resident_bytes,
            problems=survey.problems[:MAX_PROBLEMS],
            unknown_bytes=survey.unknown_bytes,
            spans=spans,
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
        """Waits for the reader. Returns why the reader ended early, or None if it has read everything."""
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
        self._send(PrefetchProgress(reader.read_bytes, due_bytes, (now_ns - begin_ns) / 1e9))
