"""A process's arguments, heap, priority, files and end, and the features of its processors."""

import ctypes
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from base.machine.files import write_whole
from base.machine.hardware import gpu_kinds, instruction_sets
from base.machine.libc import trim_heap
from base.machine.nvml import Gpu, GpuState
from base.machine.processes import EndWatch
from base.machine.processors import ProcessorTime, ThreadTime, affinity_count, read_processor_time, usable_count
from tests.support.waiting import wait_until

_SCRIPT = """
import sys
from base.machine.command_line import mask_command_line
mask_command_line()
sys.stdout.write(open("/proc/self/cmdline").read())
sys.stdout.flush()
sys.stdin.read()
"""


def test_secrets_are_masked_in_proc_cmdline(tmp_path):
    arguments = ["MODEL", "--api-key", "one", "ключ", "--hf-tok", "two", "twofold", "one-more", "", "--x_key=one"]
    child = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while "--x_key=***" not in Path(f"/proc/{child.pid}/cmdline").read_text():
        assert child.poll() is None
    shown = Path(f"/proc/{child.pid}/cmdline").read_text().split("\0")[3:-1]
    child.stdin.close()
    assert child.stdout.read().split("\0")[3:-1] == shown
    assert child.wait() == 0
    child.stdout.close()
    stars = "*" * len("ключ".encode())
    assert shown == ["MODEL", "--api-key", "***", stars, "--hf-tok", "***", "twofold", "one-more", "", "--x_key=***"]


_BLOCK = 16 << 10
"""Smaller than the blocks that malloc maps separately."""
_NUM_BLOCKS = 4096


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_freed_blocks_below_a_used_one_go_back_to_the_system():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [libc.malloc(_BLOCK) for _ in range(_NUM_BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, _BLOCK)
    highest = max(blocks)
    for block in blocks:
        if block != highest:
            libc.free(block)
    before = psutil.Process().memory_info().rss
    trim_heap()
    assert before - psutil.Process().memory_info().rss > 0.9 * _NUM_BLOCKS * _BLOCK
    libc.free(highest)


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as started:
        started.stdout.readline()
        yield started
        started.kill()


def test_an_exit_is_detected_before_and_after_the_process_is_reaped(process):
    watch = EndWatch(process.pid)
    assert not watch.is_exiting()
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert not watch.is_exiting(), "it is only stopped"
    process.kill()
    wait_until(watch.is_exiting)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert watch.is_exiting()  # it has exited, but is not reaped yet
    process.wait()
    assert watch.is_exiting()
    watch.close()
    watch.close()
    assert not EndWatch(process.pid).is_exiting(), "a process that was reaped before is not watched"


def test_a_new_file_has_ordinary_permissions_and_a_link_stays_a_link(tmp_path):
    (tmp_path / "plain").write_text("")
    write_whole(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "link").symlink_to("file")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\udc80")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit((tmp_path / "pipe").read_text)
        write_whole(tmp_path / "pipe", "text")
        assert read.result(60) == "text"


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake process with three threads, which may use processors 1 and 2 of three processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2})
    for thread_id, content in (("7", "5000 300 2\n"), ("8", "100 40 2\n"), ("9", "0 0 0\n")):
        task = tmp_path / "self" / "task" / thread_id
        task.mkdir(parents=True)
        (task / "schedstat").write_text(content)
    columns = "user nice system idle iowait irq softirq steal guest guest_nice"
    rows = ["9 9 9 9 9 9 9 9 9 9", "1 2 3 40 5 6 7 8 9 9", "10 0 0 50 0 0 0 2 9 9"]
    ticks = [" ".join(str(int(n) * os.sysconf("SC_CLK_TCK")) for n in row.split()) for row in rows]
    lines = [f"cpu  {columns}", *(f"cpu{number} {row}" for number, row in enumerate(ticks)), "intr 1 2 3"]
    (tmp_path / "stat").write_text("\n".join(lines))
    return tmp_path


def test_reads_threads_and_usable_processors(proc):
    threads = {"7": ThreadTime(5000, 300), "8": ThreadTime(100, 40)}
    assert read_processor_time(proc) == ProcessorTime(threads, 2, idle_s=95, busy_s=29, stolen_s=10)


def test_a_kernel_without_these_files_reports_nothing(proc):
    (proc / "stat").unlink()
    (proc / "self" / "task" / "7" / "schedstat").unlink()
    (proc / "self" / "task" / "8" / "schedstat").write_text("")
    nothing = read_processor_time(proc)
    assert nothing == ProcessorTime({}, 0, 0, 0, 0)
    assert nothing.since(nothing).lost_share == nothing.since(nothing).num_left == 0


def test_use_counts_threads_of_both_moments():
    before = ProcessorTime({"7": ThreadTime(10**9, 0), "8": ThreadTime(10**9, 0)}, 2, idle_s=1, busy_s=5, stolen_s=1)
    after = ProcessorTime({"7": ThreadTime(3 * 10**9, 10**9), "9": ThreadTime(10**9, 0)}, 2, 2, busy_s=8, stolen_s=2)
    use = after.since(before)
    assert use.lost_share == pytest.approx(1 - 2 / 3 * 3 / 4)
    assert use.num_left == pytest.approx(2 * 3 / 5), "others used a second, the hypervisor took another, of five"


def test_this_process_uses_processor_time():
    before = read_processor_time()
    assert str(threading.get_native_id()) in before.threads
    wait_until(lambda: 0 <= read_processor_time().since(before).lost_share < 1)


@pytest.fixture
def system(system, monkeypatch):
    """A fake machine with eight CPUs, which cgroups may limit."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    system.controller = "cpu"
    return system


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("1600000 100000", 8), ("", 8)]
    + [(-1, 8), (250_000, 3)],
)
def test_the_quota_of_a_cgroup_limits_the_processors(system, quota, expected):
    assert usable_count(system.proc) == affinity_count() == 8, "there is no cgroup yet"
    if isinstance(quota, str):
        system.mount("cgroup2", "rw", root="/", path="0::/box")
        system.limit("box", max=quota)
    else:
        system.mount("cgroup", "rw,cpu", root="/", path="4:cpu,cpuacct:/box")
        system.limit("box", cfs_quota_us=quota, cfs_period_us=100_000)
    assert usable_count(system.proc) == expected


def _instruction_sets(folder: Path, text: str) -> tuple[str, ...]:
    (folder / "cpuinfo").write_text(text)
    return instruction_sets(folder)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names of x86 processors")
def test_instruction_sets_are_told_apart_from_what_kernels_add(tmp_path):
    one = "processor\t: 0\nflags\t\t: md_clear fma hypervisor avx2 ibrs\n\nprocessor\t: 1\nflags\t\t: fma avx2\n"
    assert _instruction_sets(tmp_path, one) == ("avx2", "fma")
    assert _instruction_sets(tmp_path, "flags : avx2 avx512f fma\n") == ("avx2", "avx512f", "fma")
    assert _instruction_sets(tmp_path, "processor : 0\n") == _instruction_sets(tmp_path, "") == ()


def test_each_kind_of_gpu_is_named_once(tmp_path, monkeypatch):
    for name, model in (("0000:01:00.0", "NVIDIA H100 80GB HBM3"), ("0000:02:00.0", "NVIDIA H100 80GB HBM3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 11\n")
    assert gpu_kinds(tmp_path, tmp_path / "none") == ("NVIDIA H100 80GB HBM3",)
    gpus = [Gpu(number, "", "NVIDIA H100 80GB HBM3", 0, 0, ()) for number in range(2)]
    monkeypatch.setattr("base.machine.nvml.read_gpus", lambda: GpuState("580.1", (13, 0), tuple(gpus)))
    assert gpu_kinds(tmp_path / "none", tmp_path / "none") == ("NVIDIA H100 80GB HBM3",), "by the driver's library"


def test_gpus_of_amd_have_the_name_of_their_instructions(tmp_path, monkeypatch):
    monkeypatch.setattr("base.machine.nvml.read_gpus", lambda: None)
    for node, version in (("0", 0), ("1", 90010), ("2", 90010), ("3", 110002)):
        (tmp_path / node).mkdir()
        (tmp_path / node / "properties").write_text(f"cpu_cores_count 0\ngfx_target_version {version}\n")
    assert gpu_kinds(tmp_path / "none", tmp_path) == ("gfx1102", "gfx90a")
