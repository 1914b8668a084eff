"""Each method measures how much of a file is in the page cache."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from base.machine import page_cache as residency
from base.machine.page_cache import ResidencyProbe, by_cachestat, by_mincore, by_samples, choose_method
from tests.page_cache import expect_resident, repeated_if_pages_are_lost, resident_bytes

pytestmark = pytest.mark.alone
MIB = 1 << 20

MakeFile = Callable[..., Path]
Method = residency.Method


def is_supported(method: Method) -> bool:
    with Path(__file__).open("rb") as file:
        try:
            method(file.fileno(), 0, 1)
        except OSError:
            return False
    return True


methods = pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, id=method.__name__, marks=pytest.mark.skipif(not is_supported(method), reason="kernel"))
        for method in (by_cachestat, by_mincore, by_samples)
    ],
)


def is_cold(method: Method, resident: int, length: int) -> bool:
    """Testing a sample makes the kernel read that page, so a few pages may be resident."""
    return resident <= length // 2 if method is by_samples else resident == 0


def read(path: Path, offset: int, length: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(fd, length, offset)
    os.close(fd)


@methods
@repeated_if_pages_are_lost
def test_a_file_that_was_just_written_is_resident(make_file, method):
    path = make_file("f", 8)
    expect_resident(path, least_share=1.0)
    with ResidencyProbe(str(path), method) as probe:
        assert probe.resident_bytes() == 8 * MIB


@methods
def test_evicted_file_is_not_resident(make_file, method):
    with ResidencyProbe(str(make_file("f", 8, is_cold=True)), method) as probe:
        assert is_cold(method, probe.resident_bytes(), 8 * MIB)


@methods
@repeated_if_pages_are_lost
def test_the_half_that_was_read_is_resident(make_file, method):
    path = make_file("f", 8, is_cold=True)
    read(path, 4 * MIB, 4 * MIB)
    expect_resident(path, 4 * MIB, least_share=1.0)
    with ResidencyProbe(str(path), method) as probe:
        assert is_cold(method, probe.resident_bytes(0, 4 * MIB), 4 * MIB)
        assert probe.resident_bytes(4 * MIB, 4 * MIB) == 4 * MIB


@methods
def test_the_last_page_counts_only_up_to_the_files_end(tmp_path, method):
    path = tmp_path / "f"
    path.write_bytes(b"x" * 5000)
    with ResidencyProbe(str(path), method) as probe:
        assert probe.resident_bytes() == 5000
        assert probe.resident_bytes(4096, 1 << 30) == 904


@methods
def test_empty_file_has_nothing_resident(tmp_path, method):
    (tmp_path / "f").touch()
    with ResidencyProbe(str(tmp_path / "f"), method) as probe:
        assert probe.resident_bytes() == 0


def test_samples_read_only_the_tested_pages(make_file):
    path = make_file("f", 64, is_cold=True)
    with ResidencyProbe(str(path), by_samples) as probe:
        assert is_cold(by_samples, probe.resident_bytes(), 64 * MIB)
    assert resident_bytes(path) <= 2 * MIB


def test_a_read_only_file_of_another_user_is_sampled(tmp_path, monkeypatch):
    (tmp_path / "f").touch()

    def refuse(fd: int, offset: int, length: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(residency, "by_cachestat", refuse)
    with (tmp_path / "f").open("rb") as file:
        assert choose_method(file.fileno()) is by_mincore
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        monkeypatch.setattr(os, "access", lambda *_, **__: False)
        assert choose_method(file.fileno()) is by_samples
