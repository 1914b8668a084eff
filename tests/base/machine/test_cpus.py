"""The number of usable CPUs: this process's affinity, or less under a quota of either cgroup version."""

import os
from pathlib import Path

import pytest

from base.machine.processors import affinity_count, usable_count
from tests.base.machine.fake_system import FakeSystem


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    system = FakeSystem(tmp_path)
    system.controller = "cpu"
    return system


def test_this_machine_has_usable_cpus():
    assert 1 <= usable_count() <= affinity_count() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("1600000 100000", 8), ("", 8)],
)
def test_quota_of_cgroup_version_2(system, quota, expected):
    system.mount("cgroup2", "rw", root="/", path="0::/box")
    system.limit("box", max=quota)
    assert usable_count(system.proc) == expected


def test_the_smallest_of_nested_quotas_counts(system):
    system.mount("cgroup2", "rw", root="/", path="0::/pod/box")
    system.limit("pod", max="300000 100000")
    system.limit("pod/box", max="500000 100000")
    assert usable_count(system.proc) == 3


@pytest.mark.parametrize(("quota", "expected"), [(-1, 8), (250_000, 3)])
def test_quota_of_cgroup_version_1(system, quota, expected):
    system.mount("cgroup", "rw,cpu", root="/", path="4:cpu,cpuacct:/box")
    system.limit("box", cfs_quota_us=quota, cfs_period_us=100_000)
    assert usable_count(system.proc) == expected


def test_a_machine_without_cgroups_has_no_quota(system):
    assert usable_count(system.proc) == 8
