"""Counts the bytes that this process reads from files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_IO = Path("/proc/self/io")


class BytesRead:
    """The number of bytes that a block has read; set when the block ends."""

    num_bytes = 0


@contextmanager
def counting_bytes_read() -> Iterator[BytesRead]:
    """Counts as proc(5) does: what read(2) and similar calls return, from the page cache too."""
    if not _IO.exists():
        pytest.skip("this kernel does not count what a process reads")
    counted = BytesRead()
    begin = _read_so_far()
    yield counted
    counted.num_bytes = _read_so_far() - begin


def _read_so_far() -> int:
    counts = dict(line.split(": ") for line in _IO.read_text().splitlines())
    return int(counts["rchar"])
