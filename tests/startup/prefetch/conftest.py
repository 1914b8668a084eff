"""Real files on a real disk, evicted from the page cache where a test needs them cold."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from startup.prefetch.memory_file_systems import memory_devices
from startup.prefetch.residency import ResidencyProbe, by_mincore

MIB = 1 << 20

MakeFile = Callable[..., Path]


def resident_bytes(path: Path) -> int:
    with ResidencyProbe(str(path), by_mincore) as probe:
        return probe.resident_bytes()


def evict(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    deadline = time.monotonic() + 5
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    while resident_bytes(path) and time.monotonic() < deadline:  # pages under way to the disk stay for a moment
        time.sleep(0.02)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    assert resident_bytes(path) == 0, "the test's premise: the file is cold"


@pytest.fixture
def make_file(tmp_path: Path) -> Iterator[MakeFile]:
    """Writes a file of so many MiB, on disk and resident, and deletes it in the end."""
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


@pytest.fixture(name="evict")
def evict_fixture() -> Callable[[Path], None]:
    return evict


@pytest.fixture(name="resident_bytes")
def resident_bytes_fixture() -> Callable[[Path], int]:
    return resident_bytes
