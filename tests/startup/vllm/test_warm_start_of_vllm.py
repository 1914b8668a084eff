"""Children of a forkserver or of a standby's template have its imports, and their parent's present state."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.startup.vllm.fake_start import (
    CHECKED,
    FAKE,
    ROOT,
    FakeStart,
    environment,
    run_fake,
    unforkable,
    variant,
    words,
)
from tests.startup.vllm.test_start_metrics import metrics
from tests.support.standby_process import StandbyProcess
from tests.support.waiting import running, wait_until

pytestmark = pytest.mark.thorough


class WarmStart(FakeStart):
    """A start whose server is a child of the template process."""

    def __init__(self, standby: StandbyProcess, folder: Path, *arguments: str, **changes: str | None) -> None:
        super().__init__(folder, *arguments, env=_environment(folder, standby, **changes))
        self._standby = standby

    @property
    def servers(self) -> list[psutil.Process]:
        """The forked main processes of vLLM."""
        found = []
        for template in self._standby.templates():
            with suppress(psutil.NoSuchProcess):  # it has exited meanwhile
                found += template.children()
        return found

    def roots(self) -> list[psutil.Process]:
        return [self.root, *self.servers]


@pytest.fixture
def standby(folder: Path) -> Iterator[StandbyProcess]:
    with StandbyProcess("--for", "vllm-eager", environment=_variables(folder)) as running:
        yield running


def _variables(folder: Path) -> dict[str, str]:
    """Variables of the standby in addition to those of this process."""
    return {name: environment(folder)[name] for name in ("PYTHONPATH", "VLLM_CACHE_ROOT", "TMPDIR", "HF_ENDPOINT")}


def _environment(folder: Path, standby: StandbyProcess, **changes: str | None) -> dict[str, str]:
    """Variables of a start, including those of the interpreter flags that the standby has."""
    flags = {name: value for name, value in os.environ.items() if name == "PYTHONDONTWRITEBYTECODE"}
    return environment(folder, **{**flags, **standby.environment, **changes})


@pytest.mark.smoke
def test_a_warm_server_its_engine_and_its_workers_have_the_templates_imports(standby, folder, model):
    with WarmStart(standby, folder, model, "--enforce-eager", "--tensor-parallel-size", "2", **CHECKED) as start:
        state = start.wait_ready().state()
        template = standby.template("vllm-eager").pid
        everyone = [state["server"], state["engine"], *state["workers"]]
        for process in everyone:
            assert process["imported_in"]["vllm"] == template
            assert process["imported_in"]["vllm.v1.worker.cpu_worker"] == template
        assert state["server"]["ppid"] == template
        assert {start.kind_of(process["pid"]) for process in everyone[1:]} == {"forkserver"}
        assert len({process["ppid"] for process in everyone[1:]}) == 1
        assert start.complete("A text") == "A text was read by worker 0"
        assert start.terminate() == 0


def test_phases_of_all_processes_are_recorded(standby, folder, tmp_path):
    report = tmp_path / "report.json"
    with WarmStart(standby, folder, "--enforce-eager", "--startup-report", str(report)) as start:
        start.wait_ready()
        wait_until(report.exists)
        names = {span["name"] for span in json.loads(report.read_text())["spans"]}
        info, phases = metrics(start)
        assert info["start_mode"] == "warm"
        assert "api:fork_from_standby" in phases
        start.wait_logged(" s (warm): http://")
    assert {"fork_from_standby", "asyncmpclient_init", "executor_init", "take_over"} <= names


@pytest.mark.parametrize("victim", ["front", "server", "template"])
def test_a_killed_process_leaves_no_process_of_the_start(victim, standby, folder):
    with WarmStart(standby, folder, "--enforce-eager", "--tensor-parallel-size", "2") as start:
        (server,) = start.wait_ready().servers
        if victim == "template":
            standby.template("vllm-eager").kill()
            assert start.complete("A text") == "A text was read by worker 0"
            assert start.terminate() == 0
        else:
            (start.root if victim == "front" else server).kill()
            assert start.process.wait(60) == -signal.SIGKILL


def test_without_a_forkserver_no_process_waits_for_one(standby, folder):
    changes = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VCLI_PROBE_PROCESS": "0"}
    with WarmStart(standby, folder, "--enforce-eager", **changes) as start:
        assert start.kind_of(start.wait_ready().state()["engine"]["pid"]) == "spawn"
        arguments = start.servers[0].cmdline()  # a fork that is about to execute a program has them for a moment
        wait_until(lambda: arguments not in [process.cmdline() for process in start.servers[0].children()])


def test_starts_that_need_other_imports_are_cold(standby, folder):
    starts = {
        "VLLM_WORKER_MULTIPROC_METHOD=fork": "the start method fork",
        "VLLM_ENABLE_V1_MULTIPROCESSING=0": "needs the compiler",
        "VCLI_LEAVE_OUT=lean imports": "VCLI_LEAVE_OUT differs",
        "TORCHELASTIC_RUN_ID=1": "without preloading: a launcher starts one process per rank",
        "VLLM_WORKER_MULTIPROC_METHOD=unknown": "the settings are not understood",
    }
    for variable, reason in starts.items():
        env = _environment(folder, standby) | dict([variable.split("=")])
        done = run_fake(folder, "--enforce-eager", env=env)
        assert done.returncode == 3
        assert reason in done.stderr


def test_a_template_without_plugins_serves_no_start_with_code_of_others(standby, folder):
    env = _environment(folder, standby)
    done = run_fake(folder, "--enforce-eager", "--worker-cls", "own.Worker", env=env)
    assert done.returncode == 3
    assert "the standby has imported modules that --worker-cls may change" in done.stderr


def test_with_a_plugin_forks_import_what_it_may_change(folder, model):
    metadata = folder / "path" / "own-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "entry_points.txt").write_text("[vllm.general_plugins]\nown = own.plugin:register\n")
    path = f"{FAKE}:{ROOT}:{metadata.parent}"
    with (
        StandbyProcess("--for", "vllm-eager", environment=_variables(folder) | {"PYTHONPATH": path}) as standby,
        WarmStart(standby, folder, model, "--enforce-eager", PYTHONPATH=path) as start,
    ):
        (worker,) = start.wait_ready().state()["workers"]
        assert len(start.servers) == 1
        assert worker["imported_in"]["vllm.model_executor.models.fake_llama"] == worker["pid"]


def test_a_request_that_meets_a_dead_engine_ends_a_warm_server_with_the_digest(standby, folder):
    with WarmStart(standby, folder, "--enforce-eager", FAKE_VLLM_CRASH="request:SIGKILL") as start:
        start.wait_ready()
        with suppress(OSError):
            start.complete("A text")
        assert start.process.wait(60) == 1
        assert "Error: EngineCore (pid " in start.log


@pytest.mark.parametrize("victim", ["server", "engine"])
def test_a_router_forks_the_server_of_a_restart_once_no_process_of_the_dead_one_is_left(victim, folder, model):
    arguments = (
        model,
        "--enforce-eager",
        "--tensor-parallel-size",
        "2",
        "--restart",
        "on-failure:99",
        "--max-wait",
        "600",
    )
    env = environment(folder, XDG_RUNTIME_DIR=str(folder), **CHECKED)
    with FakeStart(folder, *arguments, env=env) as start:
        start.wait_ready().wait(lambda: list(folder.glob("vcli-*/standby-*/*-vllm-eager.sock")))
        before = _processes(start)
        # The template, and perhaps a helper for a while.
        forked = {child.pid for standby in start.children_with("standby") for child in standby.children()}
        assert not forked & {*before.values()}, "the first start is cold"
        for num_restarts in (1, 2):  # the second one restarts a server that was forked
            dead = [psutil.Process(pid) for pid in before]
            dead[["server", "engine"].index(victim)].kill()
            start.wait(lambda count=num_restarts: start.log.count("warm start: forked from") == count)
            assert not running(dead)
            before = _processes(start)
            (template,) = set(before.values())
            assert template in forked, "nobody imports vLLM again"


def _processes(start: FakeStart) -> dict[int, int]:
    """Pid of the server, the engine and each worker -> pid of the process that has imported vLLM for it."""
    state = start.state()
    return {each["pid"]: each["imported_in"]["vllm"] for each in (state["server"], state["engine"], *state["workers"])}


_FOR_GPU = {"_version": '__version__ = "0.32.0"\n'}


def test_children_have_their_parents_current_state_and_the_forkservers_imports(folder):
    """The API server changes its state between the starts of the forkserver and the engine."""
    stdout = folder / "stdout"
    env = environment(folder, FAKE_VLLM_REMOVED="at first")
    with FakeStart(folder, "--tensor-parallel-size", "2", "--change-state", str(stdout), env=env) as start:
        state = start.wait_ready().state()
        (forkserver,) = start.forkservers()
        before, cpus = forkserver.environ(), os.sched_getaffinity(forkserver.pid)
        arguments = [" ".join(words(process)) for process in start.family()]
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
    assert sum("resource_tracker import" in line for line in arguments) == 1
    assert sum(line == "vllm-cli end watch" for line in arguments) == 1
    num_writers = sum(
        "learned_imports:learn_as" in line for line in arguments
    )  # of the import file; it ends at some time
    assert len(arguments) - num_writers == len({forkserver.pid, server["pid"]}) + len(children) + num_responders + 2
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
