"""Kernels are compiled beside the engine only where that helps, by processes that end with the start."""

import os
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from startup.hook import Hook
from startup.kernels.kernel import Kernel
from startup.kernels.kernel_lists import KernelUse, kernels_for, read_keys, save_kernels, save_keys
from startup.vllm.fork import kernel_processes
from startup.vllm.fork.kernel_processes import KernelProcesses, begin_compiling, learn_kernels, summarize
from startup.vllm.journal import Journal, StartRecordings, this_start
from startup.vllm.patches import early_kernels
from tests.startup.vllm.fake_start import environment
from tests.support.cli import python_output

_USE = KernelUse("0.33.0", (0, 28), "kind", (), 32000, "bfloat16")
"""Of a release for which this package has no list."""
_KERNEL = Kernel("vllm.sampler", "_top_k", {"n": "i32"}, (), (((0,), []),), {})
_CAPABILITY = (9, 0)


@pytest.fixture(autouse=True)
def start_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a start on a machine with a GPU and three processors, whose kernels are not compiled."""
    folder = tmp_path / "start"
    folder.mkdir()
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.setattr(this_start, "journal", Journal(folder))
    monkeypatch.setattr(this_start, "environment", {"TRITON_CACHE_DIR": str(tmp_path / "triton")})
    monkeypatch.setattr(kernel_processes, "common_capability", lambda: _CAPABILITY)
    monkeypatch.setattr(kernel_processes, "usable_count", lambda: 3)
    monkeypatch.setattr(kernel_processes, "available_bytes", lambda: 64 << 30)
    monkeypatch.setattr(Hook, "applies", property(lambda hook: True))
    save_kernels(_USE, [_KERNEL])
    return folder


def _forked(parent_pid: int) -> int:
    """A process that compiles kernels, and has begun."""
    begun, ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        kernel_processes._end_with(parent_pid)
        os.write(ready, b"1")
        signal.pause()
    os.close(ready)
    os.read(begun, 1)
    os.close(begun)
    return pid


def test_the_launcher_ends_all_processes(start_folder):
    processes = KernelProcesses(start_folder)
    pids = [_forked(os.getpid()) for _ in range(2)]
    processes.end()
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [-signal.SIGKILL] * 2
    late = _forked(os.getpid())
    assert os.waitstatus_to_exitcode(os.waitpid(late, 0)[1]) == 0, "it has begun after the end"
    processes.end()


def test_no_process_begins_if_its_parent_has_ended(start_folder):
    KernelProcesses(start_folder)
    pid = _forked(os.getpid() + 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


_REAP = """
import os, sys
from startup.processes.forks import Forks, adopt
is_late = sys.argv[1] == "late"
forks = Forks() if is_late else None
if (pid := os.fork()) == 0:
    os._exit(0)
adopt(pid)
if is_late:
    forks.wait()
else:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    forks = Forks()
try:
    os.waitpid(pid, 0)
except ChildProcessError:
    print("reaped")
"""


@pytest.mark.parametrize("time", ["early", "late"])
def test_the_forkserver_leaves_no_zombie(time):
    assert python_output(_REAP, time).strip() == "reaped"


def test_without_a_pipe_nothing_is_compiled():
    pid = _forked(os.getpid())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_processes_learn_of_a_model_that_was_downloaded(start_folder):
    KernelProcesses(start_folder).tell(_USE)
    assert kernel_processes._wait_for(start_folder / "kernels-model.json") == _USE


def test_the_first_process_gets_the_missing_kernels(start_folder, tmp_path):
    job = kernel_processes._plan(_USE)
    assert job is not None
    assert (job.kernels, job.capability, job.num_processes) == ((_KERNEL,), _CAPABILITY, 2)
    assert (job.folder, job.claims_folder) == (str(tmp_path / "triton"), str(start_folder / "kernels"))


def test_slow_kernels_come_first_one_for_each_processor_that_imports_leave(start_folder, monkeypatch):
    slow = [replace(_KERNEL, function=f"slow_{number}", compile_s=4.0 - 1.5 * number) for number in range(3)]
    quick = replace(_KERNEL, function="quick", compile_s=0.3)
    save_kernels(_USE, [quick, *slow])
    for num_processors, expected in ((2, 1), (3, 1), (4, 2), (16, 2)):
        monkeypatch.setattr(kernel_processes, "usable_count", lambda num=num_processors: num)
        job = kernel_processes._plan(_USE, only_slow=True)
        assert job is not None
        assert [kernel.function for kernel in job.kernels] == ["slow_0", "slow_1"][:expected]
        assert not job.has_library
    save_kernels(_USE, [quick])
    assert kernel_processes._plan(_USE, only_slow=True) is None


_PRELOAD = """
import sys
from pathlib import Path
from startup.kernels.kernel_lists import KernelUse
from startup.vllm.fork import kernel_processes
from startup.vllm.fork.preload_plan import PreloadPlan
from startup.vllm.journal import this_start

def note(use, only_slow=False):
    modules = [name in sys.modules for name in ("vllm", "vllm.v1.engine.core")]
    print(only_slow, modules, use.version, bool(this_start.environment))

kernel_processes.begin_compiling = note
use = KernelUse("0.33.0", (0, 33), "kind", ())
PreloadPlan(sys.argv[1], ("vllm.v1.engine.core",), None, "deferred", True, (0, 33), use).write()
import startup.vllm.fork.preload
"""


@pytest.mark.thorough
def test_the_forkserver_begins_with_slow_kernels_before_it_imports_vllms_modules(tmp_path):
    variables = environment(tmp_path, VCLI_PRELOAD_PLAN=str(tmp_path / "preload.json"))
    done = python_output(_PRELOAD, tmp_path, env=variables)
    assert done.splitlines() == ["True [True, False] 0.33.0 True", "False [True, True] 0.33.0 True"]


def test_they_look_into_the_caches_of_vllm_before_they_compile(start_folder, tmp_path, monkeypatch):
    _without_users_folder(tmp_path, monkeypatch)
    models = tmp_path / "cache/torch_compile_cache/torch_aot_compile/hash/inductor_cache/triton/0"
    models.mkdir(parents=True)
    job = kernel_processes._plan(_USE)
    assert job is not None
    assert job.folder == str(tmp_path / "cache/vllm_cli/triton")
    assert job.others == (str(tmp_path / "home/.triton/cache"), str(models))


def _without_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(this_start, "environment", {"HOME": str(tmp_path / "home")})
    early_kernels._usable_folders.cache_clear()


def _write_kernel(cache: Path) -> None:
    save_keys(_CAPABILITY, {_KERNEL.id: "KEY"})
    kernel = cache / "KEY" / "__grp___top_k.json"
    kernel.parent.mkdir(parents=True)
    kernel.touch()


def _have_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_kernel(tmp_path / "triton")


def _have_all_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_users_folder(tmp_path, monkeypatch)
    _write_kernel(tmp_path / "home" / ".triton" / "cache")


def _have_all_on_the_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_users_folder(tmp_path, monkeypatch)
    _write_kernel(tmp_path / "cache" / "vllm_cli" / "triton")


def _cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(this_start, "environment", {"TRITON_CACHE_DIR": str(tmp_path / "file" / "triton")})


_REASONS = [
    pytest.param(_cannot_write, id="no folder"),
    pytest.param(lambda _, patch: patch.setattr(kernel_processes, "available_bytes", lambda: 1 << 29), id="no memory"),
    pytest.param(_have_all, id="all are in the cache"),
    pytest.param(_have_all_at_home, id="all are in Triton's own cache"),
    pytest.param(_have_all_on_the_volume, id="all are below VLLM_CACHE_ROOT"),
    pytest.param(lambda _, patch: patch.setattr(kernel_processes, "usable_count", lambda: 1), id="one processor"),
    pytest.param(lambda _, patch: patch.setattr(kernel_processes, "common_capability", lambda: None), id="no GPU"),
    pytest.param(lambda _, patch: patch.setattr(Hook, "applies", property(lambda hook: False)), id="left out"),
    *(
        pytest.param(lambda _, patch, name=name: patch.setenv(name, "1"), id=name)
        for name in early_kernels._OTHER_CACHES
    ),
]


@pytest.mark.parametrize("prepare", _REASONS)
def test_no_process_is_forked_in_vain(tmp_path, monkeypatch, prepare):
    prepare(tmp_path, monkeypatch)
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("it was forked"))
    begin_compiling(_USE)
    begin_compiling(None)


def test_a_failure_is_one_line_in_the_log(monkeypatch, caplog):
    def refuse() -> int:
        raise OSError("no memory")

    monkeypatch.setattr(os, "fork", refuse)
    begin_compiling(_USE)
    assert [record.getMessage() for record in caplog.records] == [
        "kernels are not compiled beside the engine: no memory"
    ]


def test_a_start_keeps_what_its_processes_have_used(start_folder):
    used = replace(_KERNEL, function="_new")
    journal = Journal(start_folder)
    for times in ({"compile_s": 0.0, "waited_s": 1.5}, {"compile_s": 2.0, "waited_s": 0.0}):
        journal.write(kernel={**asdict(used), "id": used.id, **times}, key="NEW")
    journal.write(kernel={"id": "damaged", "module": 1}, key="DAMAGED")
    journal.write(kernel_keys={"compiled": "BESIDE"})
    recordings = StartRecordings.read(start_folder)
    assert summarize(recordings) == {"used": 1, "compiled_by_engine": 1, "waited_s": 1.5}
    learn_kernels(_USE, recordings)
    assert [(kernel, kernel.compile_s) for kernel in kernels_for(_USE)] == [(used, 2.0)]
    assert read_keys(_CAPABILITY) == {used.id: "NEW", "damaged": "DAMAGED", "compiled": "BESIDE"}


def test_a_start_without_kernels_keeps_the_list():
    learn_kernels(_USE, StartRecordings())
    assert summarize(StartRecordings()) is None
    assert kernels_for(_USE) == (_KERNEL,)
