"""A SIGKILL is attributed to the kernel by the counters of out-of-memory kills in cgroups or the machine."""

from pathlib import Path

import pytest

from base.machine.memory import OomWatch
from tests.base.machine.fake_system import FakeSystem

_POSSIBLE_CAUSE = ", as the kernel does when memory runs out"
_ADVICE = "; lower --max-num-seqs, --max-model-len or --kv-cache-memory-bytes, or provide more memory"


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return FakeSystem(tmp_path)


def test_cgroup_version_2_counts_the_kills_of_a_container(system):
    system.mount("cgroup2", "rw", root="/", path="0::/box")
    system.limit("box", max=4 << 20, current=1, events="low 0\noom 7\noom_kill 1\noom_group_kill 0")
    watch = OomWatch(system.proc)
    assert watch.describe_kill() == _POSSIBLE_CAUSE
    system.limit("box", events="low 0\noom 9\noom_kill 2\noom_group_kill 0")
    text = watch.describe_kill()
    assert text == f": the kernel killed it because the memory of this container (4.0 MiB) ran out{_ADVICE}"


def test_cgroup_version_1_counts_the_kills_of_a_container(system):
    system.mount("cgroup", "rw,memory", root="/", path="4:memory:/box")
    system.limit("box", limit_in_bytes=4 << 20, usage_in_bytes=1, oom_control="oom_kill_disable 0\noom_kill 0")
    watch = OomWatch(system.proc)
    system.limit("box", oom_control="oom_kill_disable 0\noom_kill 1")
    assert "of this container (4.0 MiB)" in watch.describe_kill()


def test_without_a_cgroup_the_machines_counter_is_used(system):
    (system.proc / "vmstat").write_text("nr_free_pages 1\noom_kill 4\n")
    watch = OomWatch(system.proc)
    (system.proc / "vmstat").write_text("nr_free_pages 1\noom_kill 5\n")
    assert "of this machine (15.6 MiB)" in watch.describe_kill()


def test_without_a_counter_the_cause_is_only_possible(system):
    assert OomWatch(system.proc).describe_kill() == _POSSIBLE_CAUSE
