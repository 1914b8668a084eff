"""The helper process on real files: what was cold is resident afterwards, and the process never outlives its use."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from startup.prefetch.options import PrefetchOptions
from startup.prefetch.process import Prefetch, PrefetchHandle
from startup.prefetch.report import PrefetchReport
from startup.prefetch.residency import is_cheap

MIB = 1 << 20
GONE_AFTER_S = 5.0

MakeFile = Callable[..., Path]

PARENT = r"""
import os, sys, time
from pathlib import Path
from startup.prefetch.options import PrefetchOptions
from startup.prefetch.process import Prefetch
options = PrefetchOptions(mode="on", num_threads=1, block_bytes=1 << 18, memory_bytes=1 << 40)
handle = Prefetch.start([Path(sys.argv[1])], options)
if sys.argv[2] == "forks" and os.fork() == 0:
    os.write(1, b"fork %d\n" % os.getpid())
    time.sleep(60)
os.write(1, b"helper %d\n" % handle.pid)
time.sleep(60)
"""


def prefetch(files: list[Path], **options: object) -> PrefetchReport:
    with Prefetch.start(files, PrefetchOptions(**options)) as handle:  # type: ignore[arg-type]
        report = handle.result(60)
    assert report is not None
    return report


def slow_prefetch(make_file: MakeFile) -> PrefetchHandle:
    """One that would take a quarter of a minute: a file without blocks on disk is filled page by page."""
    path = make_file("slow", 64 << 10, is_sparse=True)
    options = PrefetchOptions(mode="on", num_threads=1, block_bytes=1 << 18, memory_bytes=1 << 40)
    return Prefetch.start([path], options)


def wait_until_gone(pid: int) -> bool:
    deadline = time.monotonic() + GONE_AFTER_S
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_cold_files_are_resident_afterwards(make_file: MakeFile, resident_bytes: Callable[[Path], int]) -> None:
    files = [make_file("a", 40, is_cold=True), make_file("b", 3, is_cold=True)]
    report = prefetch(files)
    assert (report.state, report.reason) == ("done", None)
    assert (report.num_files, report.total_bytes, report.resident_bytes) == (2, 43 * MIB, 0)
    assert report.read_bytes == 43 * MIB
    assert report.gb_per_s > 0
    assert [resident_bytes(path) for path in files] == [40 * MIB, 3 * MIB]


def test_only_what_is_missing_is_read(
    make_file: MakeFile, evict: Callable[[Path], None], resident_bytes: Callable[[Path], int]
) -> None:
    path = make_file("f", 32)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 8 * MIB, 16 * MIB, os.POSIX_FADV_DONTNEED)
    assert resident_bytes(path) == 16 * MIB
    report = prefetch([path], block_bytes=MIB)
    assert report.resident_bytes == 16 * MIB
    assert report.resident_share == 0.5
    assert report.read_bytes == 16 * MIB
    assert resident_bytes(path) == 32 * MIB


def test_files_that_are_resident_are_left_alone(make_file: MakeFile) -> None:
    report = prefetch([make_file("f", 8)])
    assert (report.state, report.reason, report.read_bytes) == ("off", "all of it is resident", 0)


def test_phases_are_told_on_the_monotonic_clock(make_file: MakeFile) -> None:
    begin_ns = time.monotonic_ns()
    report = prefetch([make_file("f", 8, is_cold=True)])
    assert [name for name, _, _ in report.spans] == ["prefetch_start", "prefetch_survey", "prefetch_read"]
    moments = [moment for _, begin, end in report.spans for moment in (begin, end)]
    assert moments == sorted(moments)
    assert begin_ns <= moments[0]
    assert moments[-1] <= time.monotonic_ns()


def test_no_more_is_read_than_memory_keeps(make_file: MakeFile, resident_bytes: Callable[[Path], int]) -> None:
    path = make_file("f", 120, is_cold=True)
    report = prefetch([path], mode="on", memory_bytes=(1024 + 80) * MIB, block_bytes=4 * MIB, num_threads=2)
    assert report.state == "done"
    assert report.reason is not None
    assert "84 MB of 126 MB fit" in report.reason
    assert 70 * MIB <= report.read_bytes <= 80 * MIB
    assert resident_bytes(path) < 110 * MIB, "read-ahead may go a little further"


def test_too_little_memory_turns_it_off(make_file: MakeFile, resident_bytes: Callable[[Path], int]) -> None:
    path = make_file("f", 120, is_cold=True)
    report = prefetch([path], memory_bytes=(1024 + 10) * MIB)
    assert report.state == "off"
    assert report.reason is not None
    assert "10 MB of 126 MB fit" in report.reason
    assert resident_bytes(path) == 0


def test_files_in_memory_turn_it_off() -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        pytest.skip("there is no /dev/shm")
    path = shm / f"vllm-cli-test-{os.getpid()}"
    path.write_bytes(b"x" * MIB)
    try:
        report = prefetch([path])
    finally:
        path.unlink()
    assert (report.state, report.reason) == ("off", "the files are on a file system in memory")


def test_pages_that_do_not_stay_stop_it() -> None:
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not path.exists():
        pytest.skip("there is no such file here; those of sysfs are never in the page cache")
    report = prefetch([path], mode="on")
    assert (report.state, report.reason) == ("stopped", "what is read does not stay in the page cache")


def test_resident_files_need_no_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"x" * (1 << 20))
    if not is_cheap(str(path)):
        pytest.skip("this kernel tells it slowly")
    monkeypatch.setattr("startup.prefetch.process._Helper", None)
    report = Prefetch.start([path]).result()
    assert report is not None
    assert (report.state, report.reason, report.resident_bytes) == ("off", "all of it is resident", 1 << 20)


def test_files_that_cannot_be_read_are_told_and_the_others_read(
    make_file: MakeFile, tmp_path: Path, resident_bytes: Callable[[Path], int], caplog: pytest.LogCaptureFixture
) -> None:
    good = make_file("good", 4, is_cold=True)
    with caplog.at_level(logging.WARNING):
        report = prefetch([tmp_path / "missing", good, tmp_path / "dir" / "x"])
    assert report.problems == (
        f"{tmp_path / 'missing'}: No such file or directory",
        f"{tmp_path / 'dir' / 'x'}: No such file or directory",
    )
    assert report.state == "done"
    assert resident_bytes(good) == 4 * MIB
    assert "missing: No such file or directory" in caplog.text


def test_folder_among_the_files_is_a_problem_and_no_crash(tmp_path: Path, make_file: MakeFile) -> None:
    report = prefetch([tmp_path, make_file("f", 1, is_cold=True)])
    assert report.state == "done"
    assert len(report.problems) == 1


def test_names_with_unusual_characters_are_read(make_file: MakeFile, tmp_path: Path) -> None:
    path = make_file("plain", 1)
    odd = tmp_path / os.fsdecode(b"a b\n\xff\xc3\xa9")
    path.rename(odd)
    assert prefetch([odd]).total_bytes == MIB
    odd.unlink()


def test_switched_off_starts_no_process(tmp_path: Path) -> None:
    with Prefetch.start([tmp_path], PrefetchOptions(mode="off")) as handle:
        assert handle.pid is None
        assert handle.result() == PrefetchReport("off", "it is switched off")


def test_result_that_is_not_there_yet_is_none_and_close_stops_the_process(make_file: MakeFile) -> None:
    handle = slow_prefetch(make_file)
    assert handle.pid is not None
    pid = handle.pid
    assert handle.result(0.1) is None
    begin = time.monotonic()
    handle.close()
    assert time.monotonic() - begin < 2
    assert not psutil.pid_exists(pid)


def test_progress_grows_up_to_the_report(make_file: MakeFile) -> None:
    path = make_file("f", 2 << 10, is_sparse=True)
    options = PrefetchOptions(mode="on", num_threads=1, block_bytes=1 << 16, progress_interval_s=0.05)
    with Prefetch.start([path], options) as handle:
        steps = list(handle.progress())
        report = handle.result()
    assert report is not None
    assert report.read_bytes == 2 << 30
    assert len(steps) >= 3
    assert [step.done_bytes for step in steps] == sorted(step.done_bytes for step in steps)
    assert 0 < steps[-1].share <= 1
    assert steps[-1].due_bytes == 2 << 30


@pytest.mark.parametrize("behaviour", ["is alone", "forks"])
def test_helper_ends_when_its_parent_is_killed(make_file: MakeFile, behaviour: str) -> None:
    """Also while a forked process still holds the pipe open."""
    path = make_file("slow", 64 << 10, is_sparse=True)
    command = [sys.executable, "-c", PARENT, str(path), behaviour]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        lines = [parent.stdout.readline().split() for _ in range(2 if behaviour == "forks" else 1)]
        parent.kill()
    pids = {name: int(pid) for name, pid in lines}
    assert wait_until_gone(pids["helper"])
    if behaviour == "forks":
        assert psutil.pid_exists(pids["fork"]), "the pipe was held open all the time"
        os.kill(pids["fork"], signal.SIGKILL)


def test_ctrl_c_is_left_to_the_launcher(make_file: MakeFile) -> None:
    path = make_file("f", 512, is_sparse=True)
    with Prefetch.start([path], PrefetchOptions(mode="on", num_threads=1, block_bytes=1 << 16)) as handle:
        assert handle.pid
        while psutil.Process(handle.pid).name() != "vllm-prefetch":
            time.sleep(0.005)
        os.kill(handle.pid, signal.SIGINT)
        report = handle.result(60)
    assert report is not None
    assert report.state == "done"


def test_killed_helper_is_a_warning_and_no_more(make_file: MakeFile, caplog: pytest.LogCaptureFixture) -> None:
    with slow_prefetch(make_file) as handle, caplog.at_level(logging.WARNING):
        assert handle.pid
        os.kill(handle.pid, signal.SIGKILL)
        report = handle.result(10)
    assert report == PrefetchReport("failed", "the helper process ended without a report")
    assert "no prefetch: the helper process ended without a report" in caplog.text


def test_interpreter_that_cannot_be_started_is_a_warning_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with caplog.at_level(logging.WARNING), Prefetch.start([tmp_path]) as handle:
        report = handle.result()
    assert report is not None
    assert report.state == "failed"
    assert "no prefetch: the helper process cannot be started" in caplog.text


def test_descriptors_of_the_launcher_are_given_back(make_file: MakeFile) -> None:
    before = psutil.Process().num_fds()
    prefetch([make_file("f", 1)])
    assert psutil.Process().num_fds() == before


def test_helper_loads_little_and_nothing_of_others() -> None:
    code = (
        "import sys, time; begin = time.process_time(); sys.path.append(sys.argv[1]); import startup.prefetch.worker;"
        "print(time.process_time() - begin, *(m.__name__ for m in sys.modules.values()"
        " if 'site-packages' in str(getattr(m, '__file__', ''))))"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(Path(__file__).parents[3])]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(5)]
    assert [names for _, *names in runs] == [[]] * 5
    assert min(float(seconds) for seconds, *_ in runs) < 0.03
