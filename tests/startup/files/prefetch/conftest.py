"""Fixtures: real files on a disk. Files that a test needs cold are evicted from the page cache."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from base.machine.page_cache import memory_devices
from tests.support.page_cache import evict

MIB = 1 << 20


@pytest.fixture
def make_file(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A function that writes a file of so many MiB. It is on disk and resident, and is deleted at the end."""
    if tmp_path.stat().st_dev in memory_devices():
        pytest.skip("the folder for temporary files is in memory")
    made: list[Path] = []

    def make(name: str, mib: int, *, is_cold: bool = False, is_sparse: bool = False) -> Path:
        path = tmp_path / name
        made.append(path)
        with path.open("wb") as file:
            if is_sparse:
                file.truncate(mib * MIB)
            else:
                for _ in range(mib):
                    file.write(os.urandom(1 << 12) * 256)
            file.flush()
            os.fsync(file.fileno())
        if is_cold:
            evict(path)
        return path

    yield make
    for path in made:
        path.unlink(missing_ok=True)
