"""Reads memory limits of the machine and of cgroups v1 and v2, and kills for lack of memory."""

import pytest

from base.machine.memory import MemoryState, OomWatch, read_memory

KIB = 1 << 10
MACHINE = MemoryState(8_000 * KIB, 16_000 * KIB)


def test_without_cgroups_the_machines_memory_is_the_limit_if_it_is_known(system, tmp_path):
    assert read_memory(system.proc) == MACHINE
    assert read_memory(tmp_path / "none") is None
    here = read_memory()
    assert 0 < here.available_bytes <= here.total_bytes


@pytest.mark.parametrize(("limits", "expected"), [
    ({"max": 5_000_000, "current": 3_000_000, "stat": "anon 1\ninactive_file 500000\nactive_file 200000"},
     MemoryState(2_700_000, 5_000_000, is_cgroup=True)),
    ({"max": "max", "high": 1_000_000, "current": 400_000}, MemoryState(600_000, 1_000_000, is_cgroup=True)),
    ({"max": "max", "high": "max", "current": 1}, MACHINE),
    ({"max": 1_000, "current": 2_000}, MemoryState(0, 1_000, is_cgroup=True)),
], ids=["page cache", "high", "no limit", "full"])  # fmt: skip
def test_available_is_the_cgroups_limit_minus_its_use_without_page_cache(system, limits, expected):
    system.mount("cgroup2", "rw", root="/", path="0::/box")
    system.limit("box", **limits)
    assert read_memory(system.proc) == expected


def test_the_smallest_of_nested_cgroups_counts(system):
    system.mount("cgroup2", "rw", root="/", path="0::/pod/box")
    system.limit("pod", max=3_000_000, current=2_500_000)
    system.limit("pod/box", max=5_000_000, current=1_000_000)
    assert read_memory(system.proc) == MemoryState(500_000, 3_000_000, is_cgroup=True)


def test_cgroup_version_1_has_other_names_and_a_number_for_no_limit_and_may_be_all_that_is_seen(system):
    system.mount("cgroup", "rw,memory", root="/", path="4:cpu,memory:/box")
    system.limit("", limit_in_bytes=9223372036854771712, usage_in_bytes=1)
    system.limit(
        "box", limit_in_bytes=2_000_000, usage_in_bytes=1_500_000, stat="inactive_file 9\ntotal_inactive_file 100000"
    )
    assert read_memory(system.proc) == MemoryState(600_000, 2_000_000, is_cgroup=True)

    system.mount("cgroup", "rw,memory", root="/docker/abc", path="4:memory:/docker/abc")
    system.limit("", limit_in_bytes=2_000_000, usage_in_bytes=500_000)
    assert read_memory(system.proc) == MemoryState(1_500_000, 2_000_000, is_cgroup=True)


def test_each_version_of_cgroups_counts_the_kills_of_a_container(system):
    system.mount("cgroup2", "rw", root="/", path="0::/box")
    system.limit("box", max=4 << 20, current=1, events="low 0\noom 7\noom_kill 1\noom_group_kill 0")
    watch = OomWatch(system.proc)
    assert watch.describe_kill() == ", not by the kernel's OOM killer"
    system.limit("box", events="low 0\noom 9\noom_kill 2\noom_group_kill 0")
    cause, advice = watch.describe_kill().split(". ")
    assert cause == ": the kernel killed it because the memory of this container (4.0 MiB) ran out"
    assert advice == "Lower --max-num-seqs, --max-model-len or --kv-cache-memory-bytes, or provide more memory"
    system.mount("cgroup", "rw,memory", root="/", path="4:memory:/box")
    system.limit("box", limit_in_bytes=4 << 20, usage_in_bytes=1, oom_control="oom_kill_disable 0\noom_kill 0")
    watch = OomWatch(system.proc)
    system.limit("box", oom_control="oom_kill_disable 0\noom_kill 1")
    assert "of this container (4.0 MiB)" in watch.describe_kill()


def test_without_a_cgroup_the_machines_counter_is_used_and_without_one_the_cause_is_only_possible(system):
    assert OomWatch(system.proc).describe_kill() == ", as the kernel does when memory runs out"
    (system.proc / "vmstat").write_text("nr_free_pages 1\noom_kill 4\n")
    watch = OomWatch(system.proc)
    (system.proc / "vmstat").write_text("nr_free_pages 1\noom_kill 5\n")
    assert "of this machine (15.6 MiB)" in watch.describe_kill()
