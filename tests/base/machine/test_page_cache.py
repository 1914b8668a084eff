"""Each method measures how much of a file is in the page cache."""

import os
from pathlib import Path

import pytest

from base.machine import page_cache as residency
from base.machine.page_cache import FileMapping, ResidencyProbe, by_cachestat, by_faults, by_mincore
from tests.support.page_cache import held, never_cached, resident_bytes

pytestmark = pytest.mark.alone
MIB = 1 << 20

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
        for method in (by_cachestat, by_mincore, by_faults)
    ],
)


@methods
def test_the_half_that_was_read_is_resident(make_file, method):
    path = make_file("f", 8, is_cold=True)
    with ResidencyProbe(str(path), method) as probe:
        assert probe.resident_bytes() == 0
        with held(path, 4 * MIB):
            assert probe.resident_bytes(0, 4 * MIB) == 0
            assert probe.resident_bytes(4 * MIB, 4 * MIB) == 4 * MIB


@methods
def test_the_last_page_counts_only_up_to_the_files_end(tmp_path, method):
    path = tmp_path / "f"
    path.touch()
    with ResidencyProbe(str(path), method) as probe:
        assert probe.resident_bytes() == 0
    path.write_bytes(b"x" * 5000)
    with ResidencyProbe(str(path), method) as probe:
        assert probe.resident_bytes() == 5000
        assert probe.resident_bytes(4096, 1 << 30) == 904


@pytest.mark.parametrize("owner", ["own", "of another user"])
def test_a_measurement_leaves_the_pages_as_they_are(make_file, monkeypatch, owner):
    """The page that is read to test a method does not stay in the cache either."""
    path = make_file("f", 64, is_cold=True)
    monkeypatch.setattr(residency, "_sights", {})
    if owner != "own":
        pretend_another_owner(monkeypatch)
    with ResidencyProbe(str(path)) as probe:
        assert probe.keeps_pages
        assert probe.resident_bytes() == 0
    assert resident_bytes(path) == 0


def test_a_read_only_file_of_another_user_is_sampled(make_file, monkeypatch):
    path = make_file("f", 32, is_cold=True)
    monkeypatch.setattr(residency, "by_cachestat", refuse)
    with ResidencyProbe(str(path)) as probe:
        assert probe.method is by_mincore
    pretend_another_owner(monkeypatch)
    with held(path, 28 * MIB, 4 * MIB), ResidencyProbe(str(path)) as probe:
        assert probe.method is by_faults
        assert probe.resident_bytes() == 0
        assert probe.resident_bytes(26 * MIB, 6 * MIB) == 6 * MIB


@pytest.mark.parametrize(("found", "chosen"), [([0, 1], "second"), ([0, 0], None), ([1, 1], "first")])
def test_a_method_is_believed_that_has_seen_a_page(make_file, monkeypatch, found, chosen):
    def first(fd: int, offset: int, length: int) -> int:
        return found[0]

    def second(fd: int, offset: int, length: int) -> int:
        return found[1]

    monkeypatch.setattr(residency, "_sights", {})
    monkeypatch.setattr(residency, "_allowed_methods", lambda fd: [first, second])
    with ResidencyProbe(str(make_file("f", 1))) as probe:
        assert (probe.method and probe.method.__name__) == chosen
        assert probe.resident_bytes() == (1 if chosen else 0)


def test_a_kernel_that_reports_untouched_memory_as_resident_is_not_believed(make_file, monkeypatch):
    monkeypatch.setattr(FileMapping, "num_resident", lambda _: 1)
    monkeypatch.setattr(residency, "_kernel_reports", residency._kernel_reports.__wrapped__)
    with ResidencyProbe(str(make_file("f", 1))) as probe:
        assert probe.method is None


def test_without_mincore_the_other_methods_are_used(make_file, monkeypatch):
    monkeypatch.setattr(FileMapping, "num_resident", lambda mapping: refuse(-1, 0, mapping.size))
    monkeypatch.setattr(residency, "_kernel_reports", residency._kernel_reports.__wrapped__)
    monkeypatch.setattr(residency, "by_cachestat", refuse)
    monkeypatch.setattr(residency, "_sights", {})
    with ResidencyProbe(str(make_file("f", 1))) as probe:
        assert probe.method is by_faults


def test_a_file_that_is_in_no_page_cache_is_not_measured():
    with ResidencyProbe(str(never_cached())) as probe:
        assert (probe.method, probe.keeps_pages) == (None, True)


def refuse(fd: int, offset: int, length: int) -> int:
    raise PermissionError(1, "Operation not permitted")


def pretend_another_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls fail as for users who neither own the file nor may write to it."""
    monkeypatch.setattr(residency, "by_cachestat", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
