"""Counts what this process reads from files, for tests on what is left unread."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_IO = Path("/proc/self/io")


class BytesRead:
    """What the block has read by now; the whole of it once the block has ended."""

    num_bytes = 0


@contextmanager
def counting_bytes_read() -> Iterator[BytesRead]:
    """By proc(5): whatever read(2) and its relatives returned, also from the page cache."""
    if not _IO.exists():
        pytest.skip("this kernel does not count what a process reads")
    counted = BytesRead()
    begin = _read_so_far()
    yield counted
    counted.num_bytes = _read_so_far() - begin


def _read_so_far() -> int:
    counts = dict(line.split(": ") for line in _IO.read_text().splitlines())
    return int(counts["rchar"])
