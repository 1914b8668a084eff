"""Starts of the fake vLLM that fork their server from a standby's template process."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from startup.vllm.patches.compiler import COMPILER
from tests.startup.vllm.fake_start import CHECKED, FakeStart, environment, run_fake
from tests.startup.vllm.test_start_metrics import metrics
from tests.support.standby_process import StandbyProcess
from tests.support.waiting import running, wait_until

pytestmark = pytest.mark.thorough


class WarmStart(FakeStart):
    """A start whose server is a child of the template process."""

    def __init__(self, standby: StandbyProcess, folder: Path, *words: str, **changes: str | None) -> None:
        super().__init__(folder, *words, env=_environment(folder, standby, **changes))
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
        words = start.servers[0].cmdline()  # a fork that is about to execute a program has them for a moment
        wait_until(lambda: words not in [process.cmdline() for process in start.servers[0].children()])


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


def test_a_warm_start_without_a_profile_saves_no_complete_one(folder):
    words = ("--enforce-eager", "--worker-imports", "vllm.lazy")
    with StandbyProcess("--for", "vllm-eager", environment=_variables(folder)) as standby:
        with WarmStart(standby, folder, *words) as start:
            start.wait_ready().wait_logged("ready after")
            wait_until(lambda: list((folder / "cache").rglob("preload/*.json")))
        (profile,) = (folder / "cache").rglob("preload/*.json")
        assert json.loads(profile.read_text())["value"]["is_complete"] is False
    with FakeStart(folder, *words) as start:
        start.wait_ready()
        wait_until(lambda: json.loads(profile.read_text())["value"]["num_starts"] == 2)
    content = json.loads(profile.read_text())["value"]
    assert content["is_complete"] is True
    assert "vllm.lazy" in content["engine_modules"]


def test_eager_starts_that_use_the_compiler_all_the_same_are_warm(folder):
    words = ("--enforce-eager", "--worker-imports", COMPILER)
    with FakeStart(folder, *words) as start:
        start.wait_ready()
        wait_until(lambda: list((folder / "cache").rglob("preload/*.json")))
    with (
        StandbyProcess("--for", "vllm-eager", environment=_variables(folder)) as standby,
        WarmStart(standby, folder, *words) as start,
    ):
        start.wait_ready()
        assert len(start.servers) == 1


def test_a_request_that_meets_a_dead_engine_ends_a_warm_server_with_the_digest(standby, folder):
    with WarmStart(standby, folder, "--enforce-eager", FAKE_VLLM_CRASH="request:SIGKILL") as start:
        start.wait_ready()
        with suppress(OSError):
            start.complete("A text")
        assert start.process.wait(60) == 1
        assert "Error: EngineCore (pid " in start.log


@pytest.mark.smoke
@pytest.mark.parametrize("victim", ["server", "engine"])
def test_a_router_forks_the_server_of_a_restart_once_no_process_of_the_dead_one_is_left(victim, folder, model):
    words = (model, "--enforce-eager", "--tensor-parallel-size", "2", "--restart", "on-failure:99", "--max-wait", "600")
    env = environment(folder, XDG_RUNTIME_DIR=str(folder), **CHECKED)
    with FakeStart(folder, *words, env=env) as start:
        start.wait_ready().wait(lambda: list(folder.glob("vcli-*/standby-*/*-vllm-eager.sock")))
        ((template,),) = [each.children() for each in start.children_with("standby") if each.children()]
        before = _processes(start)
        assert template.pid not in before.values(), "the first start is cold"
        for num_restarts in (1, 2):  # the second one restarts a server that was forked
            dead = [psutil.Process(pid) for pid in before]
            dead[["server", "engine"].index(victim)].kill()
            start.wait(lambda count=num_restarts: start.log.count("warm start: forked from") == count)
            assert not running(dead)
            before = _processes(start)
            assert set(before.values()) == {template.pid}, "nobody imports vLLM again"


def _processes(start: FakeStart) -> dict[int, int]:
    """Pid of the server, the engine and each worker -> pid of the process that has imported vLLM for it."""
    state = start.state()
    return {each["pid"]: each["imported_in"]["vllm"] for each in (state["server"], state["engine"], *state["workers"])}
