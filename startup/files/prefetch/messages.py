"""Messages between the launcher and the prefetch's helper process: the job, progress and the report."""

from typing import Final, Literal, NamedTuple

MAX_PROBLEMS: Final = 8
"""The most problems in a report, which must fit into the pipe."""
NUM_THREADS: Final = 8

PrefetchState = Literal["done", "off", "stopped", "failed"]


class PrefetchJob(NamedTuple):
    """The files of one prefetch, and how to read them."""

    paths: tuple[str, ...]
    """The files to read as a whole, in this order."""
    pages: str | None = None
    """A file that lists the parts of files that earlier starts have read. These parts are read first."""
    is_forced: bool = False
    """Whether to read even if reading helps little."""
    num_threads: int = NUM_THREADS
    block_bytes: int = 16 << 20
    """The bytes of one block. A thread reads one block after the other, except blocks in the page cache."""
    memory_bytes: int | None = None
    """The available memory to assume, in bytes. None: the available memory is measured."""
    progress_interval_s: float | None = None
    """Seconds between progress messages. None: there are no progress messages."""
    begin_ns: int = 0
    """When the launcher began to start the helper, in monotonic nanoseconds."""


class PrefetchProgress(NamedTuple):
    """The progress of a prefetch. Resident bytes are bytes in the page cache."""

    done_bytes: int
    """Bytes that were missing and have become resident."""
    due_bytes: int
    """Bytes that were missing at the beginning and will be read."""
    elapsed_s: float

    @property
    def share(self) -> float:
        """The share of the due bytes that are done, 0 to 1."""
        return min(self.done_bytes / self.due_bytes, 1.0) if self.due_bytes else 1.0

    @property
    def gb_per_s(self) -> float:
        """The rate so far in 10**9 bytes per second."""
        return self.done_bytes / self.elapsed_s / 1e9 if self.elapsed_s else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds left at this rate. None while the rate is unknown."""
        left = self.due_bytes - self.done_bytes
        return left / self.done_bytes * self.elapsed_s if self.done_bytes else None


class PrefetchReport(NamedTuple):
    """The result of a prefetch, in bytes and seconds."""

    state: PrefetchState
    """`off`: there was nothing to read, or no benefit. `stopped`: the prefetch ended early."""
    reason: str | None = None
    """Why the state is not `done`, or why only a part was read."""
    num_files: int = 0
    total_bytes: int = 0
    resident_bytes: int = 0
    """Bytes that were in the page cache before the prefetch."""
    read_bytes: int = 0
    """Bytes that became resident during the prefetch. The model's loader may have read some of them."""
    read_s: float = 0.0
    problems: tuple[str, ...] = ()
    """Problems with the first files that could not be read."""
    unknown_bytes: int = 0
    """Bytes of files whose share in the page cache cannot be measured. They count as not resident."""
    spans: tuple[tuple[str, int, int], ...] = ()
    """Phases of the helper: name, begin and end in monotonic nanoseconds."""

    @property
    def resident_share(self) -> float | None:
        """The share of the bytes that were in the page cache before, 0 to 1. None if it is unknown."""
        if self.unknown_bytes:
            return None
        return self.resident_bytes / self.total_bytes if self.total_bytes else 0.0

    @property
    def gb_per_s(self) -> float:
        """The rate in 10**9 bytes per second. 0 if nothing was read."""
        return self.read_bytes / self.read_s / 1e9 if self.read_s else 0.0

    def __str__(self) -> str:
        share = "an unknown share" if self.resident_share is None else f"{self.resident_share:.0%}"
        what = f"{self.total_bytes / 1e9:.2f} GB in {self.num_files} files, {share} resident before"
        if self.read_bytes:
            what += f", {self.read_bytes / 1e9:.2f} GB read in {self.read_s:.2f} s ({self.gb_per_s:.2f} GB/s)"
        return f"prefetch {self.state}{f' ({self.reason})' if self.reason else ''}: {what}"
