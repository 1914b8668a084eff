"""The forkserver's children have their parent's current state, like spawned processes."""

import os

import psutil
import pytest

from tests.startup.vllm.fake_start import FakeStart, environment, unforkable, variant

pytestmark = pytest.mark.thorough

_FOR_GPU = {"_version": '__version__ = "0.32.0"\n'}


def test_children_have_their_parents_current_state_and_the_forkservers_imports(folder):
    """The API server changes its state between the starts of the forkserver and the engine."""
    stdout = folder / "stdout"
    env = environment(folder, FAKE_VLLM_REMOVED="at first")
    with FakeStart(folder, "--tensor-parallel-size", "2", "--change-state", str(stdout), env=env) as start:
        state = start.wait_ready().state()
        (forkserver,) = start.forkservers()
        before, cpus = forkserver.environ(), os.sched_getaffinity(forkserver.pid)
        words = [" ".join(process.cmdline()) for process in start.family()]
        num_responders = len(start.responders())
        launched = psutil.Process(state["server"]["pid"]).environ()
    server, engine, workers = state["server"], state["engine"], state["workers"]
    children = (engine, *workers)

    assert "FAKE_VLLM_CHANGED" not in before
    assert before["FAKE_VLLM_REMOVED"] == "at first"
    assert before["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1", "GPUs are detected without initialising CUDA"
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" not in launched
    assert server["environment"]["FAKE_VLLM_CHANGED"] == "since the start"
    assert engine["environment"] == server["environment"]
    for rank, worker in enumerate(workers):
        own = {name: worker["environment"].pop(name) for name in ("OMP_NUM_THREADS", "GOMP_CPU_AFFINITY")}
        assert own["OMP_NUM_THREADS"] == str(rank + 1)
        assert worker["environment"] == engine["environment"]

    assert len(cpus) == len(os.sched_getaffinity(0))
    for process in children:
        same = ("umask", "max_open_files", "affinity", "streams")
        assert {name: process[name] for name in same} == {name: server[name] for name in same}
        assert f"{process['name']} prints a line" in stdout.read_text()
        assert process["blocked_signals"] == []
        assert process["libraries"]["hub_is_offline"] is True, "read at the import, and updated"
        assert "vllm.v1.worker.cpu_worker" in process["imported_in"]
        assert {name for name, pid in process["imported_in"].items() if pid != forkserver.pid} == set()
    assert (server["umask"], server["max_open_files"]) == ("0027", 777)
    assert server["affinity"] == [min(os.sched_getaffinity(0))]
    assert server["streams"] == [str(stdout), str(start.log_path)]
    assert "prints a line" not in start.log
    assert [process["parent"] for process in children] == [server["pid"], *[engine["pid"]] * 2]
    assert [process["name"] for process in children] == ["EngineCore", "VllmWorker-0", "VllmWorker-1"]
    assert [process["title"] for process in children] == ["VLLM::EngineCor", "VLLM::Worker_0", "VLLM::Worker_1"]
    assert sum("resource_tracker import" in line for line in words) == 1
    assert sum(line == "vllm-cli end watch" for line in words) == 1
    num_writers = sum("learned_imports:learn_as" in line for line in words)  # of the import file; it ends at some time
    assert len(words) - num_writers == len({forkserver.pid, server["pid"]}) + len(children) + num_responders + 2
    assert num_writers <= 1


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
    with FakeStart(folder, "--tensor-parallel-size", "2", "--enforce-eager", env=env) as start:
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
    with FakeStart(folder, env=environment(folder, unforkable(folder))) as start:
        assert start.kind_of(start.wait_ready().state()["engine"]["pid"]) == "spawn"
        (warning,) = start.lines_with("WARNING")
        assert "EngineCore is started as a new program instead of forked: PYTHONHASHSEED is '7'" in warning
