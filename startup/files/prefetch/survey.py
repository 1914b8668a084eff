"""Finds the parts of files that are missing in the page cache, and decides which of them to read.

A record is a file that lists the parts of files that earlier starts have read. Bytes in the page cache are
called resident. Most functions run in the helper process.
"""

import json
import os
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from base.machine.file_stamps import read_stamp
from base.machine.memory import read_memory
from base.machine.page_cache import ResidencyProbe, memory_devices
from startup.files.prefetch.messages import PrefetchJob

RESERVE_BYTES = 1 << 30
"""Memory in bytes that is left for the imports and the engine."""

_RESIDENT_ENOUGH = 0.99
_MIN_BYTES = 64 << 20
_SHARE_THAT_HELPS = 0.5


class FileRanges(NamedTuple):
    """The wanted parts of one file."""

    path: str
    size: int
    """The file's size in bytes. A file of another size has other content, and is not read."""
    ranges: tuple[tuple[int, int], ...]
    """The offset and length of each part."""


def whole_file(path: str) -> FileRanges:
    """Returns the whole file as one part. Raises OSError."""
    size = os.stat(path).st_size  # noqa: PTH116
    return FileRanges(path, size, ((0, size),))


def write_pages(path: str, files: Iterable[FileRanges]) -> None:
    """Writes a record of these parts. Paths below the record's folder are stored relative to this folder."""
    folder = f"{os.path.dirname(path)}/"  # noqa: PTH120
    content = [(name.removeprefix(folder), size, ranges) for name, size, ranges in files]
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(content, file)


def read_pages(path: str) -> list[FileRanges]:
    """Returns the record's files that exist with the same size. Empty if the record is damaged."""
    folder = os.path.dirname(path)  # noqa: PTH120
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            entries: list[Any] = json.load(file)
        found = []
        for name, size, ranges in entries:
            place = os.path.join(folder, name)  # noqa: PTH118
            if read_stamp(place).size == size:
                numbers = tuple((int(offset), int(length)) for offset, length in ranges)
                found.append(FileRanges(place, size, numbers))
    except (OSError, ValueError, TypeError):
        return []
    return found


class Block(NamedTuple):
    """A range of a file that a thread reads at once."""

    path: str
    offset: int
    length: int
    missing_bytes: int
    """Bytes of the block that were not resident."""


class Survey(NamedTuple):
    """How many bytes of the files were resident before the prefetch, and which blocks are to be read."""

    num_files: int
    total_bytes: int
    resident_bytes: int
    in_memory_bytes: int = 0
    """Bytes of files on file systems in memory."""
    blocks: tuple[Block, ...] = ()
    problems: tuple[str, ...] = ()
    unknown_bytes: int = 0
    """Bytes of files whose share in the page cache cannot be measured. All of them are read."""
    dropped_bytes: int = 0
    """Bytes that are not read, because their file system would drop them from the page cache before use."""
    reason: str | None = None
    """Why nothing or only a part is to be read, or else `note`. None before `decide`."""

    @property
    def due_bytes(self) -> int:
        return sum(block.missing_bytes for block in self.blocks)

    @property
    def note(self) -> str | None:
        """A text about `unknown_bytes` and `dropped_bytes`. None if both are 0."""
        notes = []
        if self.unknown_bytes:
            notes.append(f"it is not known how much of {_mb(self.unknown_bytes)} was resident")
        if self.dropped_bytes:
            notes.append(f"{_mb(self.dropped_bytes)} are on a file system that drops a file's pages at each open")
        return "; ".join(notes) or None


def survey_files(job: PrefetchJob, *, is_quick: bool = False) -> Survey:
    """Surveys the parts in the job's record, then the files as a whole.

    Never raises. A file that cannot be read becomes a problem in the survey. With `is_quick`, the survey
    takes microseconds per block. Measurements that take longer are replaced by estimates, or the bytes count
    as missing.
    """
    devices = memory_devices()
    surveys: list[Survey] = []
    problems: list[str] = []
    recorded: list[FileRanges | str] = []
    if job.pages is not None:
        recorded += read_pages(job.pages)
    for file in (*recorded, *job.paths):
        try:
            wanted = whole_file(file) if isinstance(file, str) else file
            surveys.append(_survey_file(wanted, job.block_bytes, devices, is_quick=is_quick))
        except OSError as err:
            problems.append(f"{file if isinstance(file, str) else file.path}: {err.strerror}")
    return Survey(
        num_files=len(surveys),
        total_bytes=sum(each.total_bytes for each in surveys),
        resident_bytes=sum(each.resident_bytes for each in surveys),
        in_memory_bytes=sum(each.in_memory_bytes for each in surveys),
        blocks=tuple(block for each in surveys for block in each.blocks),
        problems=tuple(problems),
        unknown_bytes=sum(each.unknown_bytes for each in surveys),
        dropped_bytes=sum(each.dropped_bytes for each in surveys),
    )


def _survey_file(wanted: FileRanges, block_bytes: int, devices: Container[int], *, is_quick: bool) -> Survey:
    num_bytes = sum(length for _, length in wanted.ranges)
    if Path(wanted.path).stat().st_dev in devices:
        os.close(os.open(wanted.path, os.O_RDONLY | os.O_CLOEXEC))  # raises OSError
        return Survey(1, num_bytes, num_bytes, in_memory_bytes=num_bytes)
    with ResidencyProbe(wanted.path) as probe:
        if not probe.keeps_pages:
            return Survey(1, num_bytes, 0, dropped_bytes=num_bytes)
        count = probe.estimated_bytes if is_quick else probe.resident_bytes
        blocks = tuple(_missing_blocks(wanted, block_bytes, count))
    resident_bytes = num_bytes - sum(block.missing_bytes for block in blocks)
    return Survey(1, num_bytes, resident_bytes, blocks=blocks, unknown_bytes=0 if probe.method else num_bytes)


def decide(survey: Survey, job: PrefetchJob) -> Survey:
    """Limits the survey to the blocks that fit into memory. Reads nothing if less than half fits.

    A forced job reads all blocks that fit, even if less than half fits.
    """
    if reason := reason_to_skip(survey, is_forced=job.is_forced):
        return survey._replace(blocks=(), reason=reason)
    available, due = available_bytes(job), survey.due_bytes
    if available is None or (room := available - survey.resident_bytes - RESERVE_BYTES) >= due:
        return survey._replace(reason=survey.note)
    reason = (
        f"{_mb(available)} of memory are available, of which {_mb(RESERVE_BYTES)} are reserved for the engine: "
        f"{_mb(max(room, 0))} of {_mb(due)} fit{f'; {survey.note}' if survey.note else ''}"
    )
    least = 0 if job.is_forced else max(due * _SHARE_THAT_HELPS, _MIN_BYTES)
    sums = accumulate(block.missing_bytes for block in survey.blocks)
    num_fitting = bisect_right([*sums], room) if room >= least else 0
    return survey._replace(blocks=survey.blocks[:num_fitting], reason=reason)


def available_bytes(job: PrefetchJob) -> int | None:
    """The available memory, including the page cache of the files. None if the system does not report it."""
    if job.memory_bytes is not None:
        return job.memory_bytes
    state = read_memory()
    return state.available_bytes if state else None


def reason_to_skip(survey: Survey, *, is_forced: bool) -> str | None:
    """Why nothing is to be read. None if something is to be read."""
    if not survey.num_files:
        return "none of the files can be read"
    if survey.in_memory_bytes == survey.total_bytes:
        return "the files are on a file system in memory"
    if not survey.blocks:
        return survey.note or "all files are resident"
    share = survey.resident_bytes / (survey.total_bytes - survey.dropped_bytes)
    if share >= _RESIDENT_ENOUGH and not is_forced:
        return f"{share:.1%} of the bytes are resident"
    return None


def _missing_blocks(wanted: FileRanges, block_bytes: int, count: Callable[[int, int], int]) -> Iterator[Block]:
    for begin, num_bytes in wanted.ranges:
        for offset in range(begin, begin + num_bytes, block_bytes):
            length = min(block_bytes, begin + num_bytes - offset)
            if missing := length - count(offset, length):
                yield Block(wanted.path, offset, length, missing)


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.0f} MB"
