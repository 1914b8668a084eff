"""The forkserver's children have their parent's current state, like spawned processes."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from tests.startup.vllm.fake_start import FakeStart, environment, short_folder, variant

pytestmark = pytest.mark.thorough

_OF_WORKERS = ("OMP_NUM_THREADS", "GOMP_CPU_AFFINITY")

_FOR_GPU = {"_version": '__version__ = "0.32.0"\n'}


class Seen(NamedTuple):
    """One running start, and the state that its processes report."""

    start: FakeStart
    server: dict[str, Any]
    engine: dict[str, Any]
    workers: list[dict[str, Any]]
    stdout: Path
    forkserver: psutil.Process

    @property
    def children(self) -> list[dict[str, Any]]:
        return [self.engine, *self.workers]


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    """A start whose API server changes its state between the starts of the forkserver and the engine."""
    with short_folder() as folder:
        stdout = folder / "stdout"
        env = environment(folder, FAKE_VLLM_REMOVED="at first")
        words = ("--tensor-parallel-size", "2", "--change-state", str(stdout))
        with FakeStart(folder, *words, env=env) as start:
            state = start.wait_ready().state()
            (forkserver,) = start.forkservers()
            yield Seen(start, state["server"], state["engine"], state["workers"], stdout, forkserver)


def test_children_get_their_parents_current_environment(seen):
    assert "FAKE_VLLM_CHANGED" not in seen.forkserver.environ()
    assert seen.forkserver.environ()["FAKE_VLLM_REMOVED"] == "at first"
    assert seen.server["environment"]["FAKE_VLLM_CHANGED"] == "since the start"
    assert seen.engine["environment"] == seen.server["environment"]
    for rank, worker in enumerate(seen.workers):
        own = {name: worker["environment"].pop(name) for name in _OF_WORKERS}
        assert own["OMP_NUM_THREADS"] == str(rank + 1)
        assert worker["environment"] == seen.engine["environment"]


def test_children_get_their_parents_current_streams(seen):
    for process in (seen.server, *seen.children):
        assert process["streams"] == [str(seen.stdout), str(seen.start.log_path)]
    text = seen.stdout.read_text()
    assert all(f"{process['name']} prints a line" in text for process in seen.children)
    assert "prints a line" not in seen.start.log


def test_children_get_their_parents_limits_umask_and_cpus(seen):
    assert len(os.sched_getaffinity(seen.forkserver.pid)) == len(os.sched_getaffinity(0))
    for process in seen.children:
        assert process["umask"] == "0027"
        assert process["max_open_files"] == seen.server["max_open_files"] == 777
        assert process["affinity"] == seen.server["affinity"] == [min(os.sched_getaffinity(0))]
        assert process["blocked_signals"] == []


def test_offline_mode_that_the_hubs_client_read_at_import_is_updated(seen):
    worker_module = "vllm.v1.worker.cpu_worker"
    for process in seen.children:
        assert process["imported_in"][worker_module] == seen.forkserver.pid
        assert process["libraries"]["hub_is_offline"] is True


def test_forkserver_detects_gpus_without_initialising_cuda(seen):
    assert seen.forkserver.environ()["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
    assert psutil.Process(seen.server["pid"]).environ().get("PYTORCH_NVML_BASED_CUDA_CHECK") is None


def test_a_childs_parent_is_the_process_that_started_it(seen):
    assert seen.engine["parent"] == seen.server["pid"]
    assert [worker["parent"] for worker in seen.workers] == [seen.engine["pid"]] * 2
    assert [process["name"] for process in seen.children] == ["EngineCore", "VllmWorker-0", "VllmWorker-1"]


def test_a_start_has_one_forkserver_and_one_resource_tracker(seen):
    """Also if `forkserver` is multiprocessing's default method, as since Python 3.14."""
    words = [" ".join(process.cmdline()) for process in seen.start.family()]
    assert sum("resource_tracker import" in line for line in words) == 1
    ours = {seen.forkserver.pid, seen.server["pid"], *(process["pid"] for process in seen.children)}
    assert sum(line == "vllm-cli end watch" for line in words) == 1
    assert len(words) == len(ours) + len(seen.start.responders()) + 2


def test_modules_of_engine_and_worker_are_imported_before_the_fork(seen):
    for process in seen.children:
        assert set(process["imported_in"].values()) == {seen.forkserver.pid}


def test_processes_keep_their_titles(seen):
    assert seen.engine["title"] == "VLLM::EngineCor"
    assert [worker["title"] for worker in seen.workers] == ["VLLM::Worker_0", "VLLM::Worker_1"]


_TITLES = """
import sys

def getproctitle():
    print("setproctitle is called", "after" if "vllm" in sys.modules else "before", "vLLM's import", flush=True)

def setproctitle(title):
    pass
"""


def test_setproctitle_is_called_before_an_import_can_move_the_first_variable(folder):
    fake = variant(folder)
    (fake / "setproctitle.py").write_text(_TITLES)
    with FakeStart(folder, env=environment(folder, fake)) as start:
        start.wait_ready()
        assert start.lines_with("setproctitle is called") == ["setproctitle is called before vLLM's import"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="binds two workers to two processors")
def test_a_workers_openmp_variables_apply_although_the_forkserver_imported_torch(folder):
    cpus = sorted(os.sched_getaffinity(0))
    env = environment(folder, FAKE_VLLM_TORCH="1")
    words = ("--tensor-parallel-size", "2", "--enforce-eager")
    with FakeStart(folder, *words, env=env) as start:
        state = start.wait_ready().state()
        (forkserver,) = start.forkservers()
    for rank, worker in enumerate(state["workers"]):
        assert worker["imported_in"]["vllm.v1.worker.cpu_worker"] == forkserver.pid
        assert worker["libraries"]["torch_num_threads"] == rank + 1
        assert worker["affinity"] == [cpus[rank]]
        assert worker["libraries"]["cuda_is_initialized"] is False
    assert state["engine"]["affinity"] == cpus
    assert "torch._inductor.lowering" not in state["engine"]["modules"]


@pytest.mark.parametrize(
    ("wanted", "found", "files"),
    [
        pytest.param("forkserver", "forkserver", {}, id="forkserver", marks=pytest.mark.smoke),
        pytest.param("fork", "spawn", {}, id="fork-on-cpu"),  # vLLM's CPU platform requires it
        pytest.param(None, "forkserver", _FOR_GPU, id="default-on-gpu"),
        pytest.param("fork", "fork", _FOR_GPU, id="fork-on-gpu"),
    ],
)
def test_children_are_started_with_the_configured_method(wanted, found, files, folder):
    """No child imports modules with the names of our packages, even if they are first on the path."""
    fake = variant(folder, **files)
    for name in ("router", "server", "startup", "base", "envs"):
        (fake / f"{name}.py").write_text(f"open({str(folder / 'imported')!r}, 'w').close()\nraise SystemExit\n")
    env = environment(folder, fake, VLLM_WORKER_MULTIPROC_METHOD=wanted)
    with FakeStart(folder, env=env) as start:
        state = start.wait_ready().state()
        children = [state["engine"], *state["workers"]]
        assert [start.kind_of(child["pid"]) for child in children] == [found] * 2
        assert len(start.forkservers()) == (found == "forkserver")
        assert start.complete("A text") == "A text was read by worker 0"
        assert start.terminate() == 0
        start.wait_all_gone()
        assert start.lines_with("WARNING") == []
        assert not (folder / "imported").exists()


def test_a_variable_that_only_a_new_program_can_apply_starts_one(folder):
    changes = "\n_prepare = prepare_environment\n\n\ndef prepare_environment():\n    _prepare()\n"
    platforms = (Path(__file__).with_name("fake") / "vllm" / "platforms" / "cpu.py").read_text()
    fake = variant(folder, platforms__cpu=f"{platforms}{changes}    os.environ['PYTHONHASHSEED'] = '7'\n")
    with FakeStart(folder, env=environment(folder, fake)) as start:
        state = start.wait_ready().state()
        assert start.kind_of(state["engine"]["pid"]) == "spawn"
        assert (
            len(start.lines_with("EngineCore is started as a new program instead of forked: PYTHONHASHSEED is '7'"))
            == 1
        )
        assert len(start.lines_with("WARNING")) == 1
