"""Models sleep instead of being stopped: the fake vLLM by its control socket, commands by HTTP calls."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server_process import ServerProcess
from tests.router.router_process import foreign
from tests.router.sleeping_router import AWAKE, FLAGS, SleepingRouter
from tests.startup.vllm.fake_start import environment, short_folder
from tests.support.cli import run_cli
from tests.support.http_client import ask

pytestmark = pytest.mark.thorough


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


def test_models_change_places_asleep_with_the_same_processes(folder):
    with SleepingRouter(folder, "--on-swap", "sleep") as router:
        assert (router.says("a"), router.says("b")) == (AWAKE, AWAKE)
        pids = {name: router.pid(name) for name in "ab"}
        for name, other in ("ab", "ba") * 2:
            assert router.says(name) == AWAKE
            assert (router.state(name), router.state(other)) == ("ready", "asleep")
            assert ask(f"{router.url}/readyz?model={other}").status == 200
        assert {name: router.pid(name) for name in "ab"} == pids
        states = {row["model"]: row["state"] for row in router.ask("/running").json["running"]}
        assert states == {"a": "asleep", "b": "ready"}
        assert router.metric("vllm_cli:model_sleep_changes_total", model="a", verb="wake") == 2
        assert router.metric("vllm_cli:model_state", model="a", state="asleep") == 1
        assert all(row["num_starts"] == 1 for row in router.models().values())
        assert router.terminate() == 0


def test_requests_of_many_clients_in_turns_and_at_random_are_all_answered(folder):
    with SleepingRouter(folder, "--on-swap", "sleep") as router, ThreadPoolExecutor(8) as clients:
        texts = set(clients.map(router.says, "ab" * 20 + "aabbbabaab" * 2))
        assert texts == {AWAKE}
        assert all(row["num_starts"] == 1 for row in router.models().values())


def test_by_hand_a_model_sleeps_wakes_and_stops(folder):
    with SleepingRouter(folder) as router:

        def run(verb: str) -> dict[str, Any]:
            done = run_cli(verb, "a", "--port", str(router.port), "--json")
            return {"code": done.returncode, "status": json.loads(done.stdout)["status"]}

        assert run("sleep") == {"code": 1, "status": "failed"}
        assert run("load") == {"code": 0, "status": "ready"}
        for _ in range(2):
            assert run("sleep") == {"code": 0, "status": "asleep"}
        assert router.state("a") == "asleep"
        entry = next(each for each in json.loads(run_cli("ps", "--json").stdout) if each["port"] == router.port)
        assert {model["model"]: model["state"] for model in entry["models"]} == {"a": "asleep", "b": "stopped"}
        assert run("load") == {"code": 0, "status": "ready"}
        assert run("sleep") == {"code": 0, "status": "asleep"}
        assert router.says("a") == AWAKE
        assert run("sleep") == {"code": 0, "status": "asleep"}
        assert run("unload") == {"code": 0, "status": "stopped"}
        assert router.models()["a"]["num_starts"] == 1
        assert router.terminate() == 0


def test_a_request_that_comes_while_a_model_falls_asleep_wakes_it(folder):
    with SleepingRouter(folder, "--idle-sleep", "2s") as router:
        assert router.says("a") == AWAKE
        router.gate.touch()
        router.wait_state("a", "falling asleep")
        texts: list[str] = []
        waiting = threading.Thread(target=lambda: texts.append(router.says("a")))
        waiting.start()
        router.wait(lambda: router.models()["a"]["num_waiting"] == 1)
        router.gate.unlink()
        waiting.join()
        assert texts == [AWAKE]
        assert router.models()["a"]["num_starts"] == 1


def test_a_model_that_cannot_fall_asleep_is_stopped_instead(folder):
    with SleepingRouter(folder, "--on-swap", "sleep") as router:
        assert router.says("a") == AWAKE
        router.failure.touch()
        assert router.says("b") == AWAKE
        assert router.state("a") == "stopped"
        assert router.models()["a"]["reason"] is None, "it has not failed"
        router.wait_logged("a is stopped instead of sleeping. It did not fall asleep: RuntimeError: CUDA error")
        assert router.metric("vllm_cli:model_sleep_failures_total", model="a", reason="refused") == 1
        router.failure.unlink()
        assert router.says("a") == AWAKE


@pytest.mark.parametrize("state", ["falling asleep", "asleep"])
def test_a_model_that_is_killed_is_started_by_the_next_request(folder, state):
    with SleepingRouter(folder, "--idle-sleep", "2s") as router:
        assert router.says("a") == AWAKE
        if state == "falling asleep":
            router.gate.touch()
        router.wait_state("a", state)
        router.tree("a")[0].send_signal(signal.SIGKILL)
        router.wait_state("a", "failed")
        router.gate.unlink(missing_ok=True)
        assert router.says("a") == AWAKE
        assert router.models()["a"]["num_starts"] == 2


def test_a_model_that_is_killed_while_it_wakes_starts_for_the_request_that_waits(folder):
    with SleepingRouter(folder) as router, ThreadPoolExecutor(1) as client:
        assert router.says("a") == AWAKE
        assert router.ask("/v1/models/a/sleep", {}).status == 200
        router.gate.touch()
        answer = client.submit(router.says, "a")
        router.wait_state("a", "waking")
        router.tree("a")[0].send_signal(signal.SIGKILL)
        assert answer.result() == AWAKE
        assert router.models()["a"]["num_starts"] == 2


def test_a_changed_entry_stops_the_sleeping_process(folder):
    with SleepingRouter(folder) as router:
        assert router.says("a") == AWAKE
        assert router.ask("/v1/models/a/sleep", {}).status == 200
        pid = router.pid("a")
        router.write({"a": {"model": "fake", "engine": "vllm", "args": [*FLAGS, "--max-model-len", "64"]}})
        router.root.send_signal(signal.SIGHUP)
        router.wait_state("a", "stopped")
        assert router.says("a") == AWAKE
        assert router.pid("a") != pid


def test_one_model_sleeps_behind_its_port(folder):
    words = ["fake", "--engine", "vllm", *FLAGS, "--idle-sleep", "1s", "--idle-warm", "off", "--standby", "off"]
    with ServerProcess(words, environment=environment(folder)) as server:
        server.wait(lambda: server.ask("/health").headers.get("model-state") == "asleep")
        assert server.ask("/status.json").json["status"] == "asleep"
        assert {server.ask(path).status for path in ("/health", "/readyz", "/readyz?model")} == {200}
        answer = server.ask("/v1/completions", {"prompt": "Once"})
        assert answer.json["choices"][0]["text"] == AWAKE
        assert server.terminate() == 0


@pytest.mark.parametrize("end", ["killed", "refused"])
def test_one_model_with_restart_whose_sleep_ends(folder, end):
    """A process that is killed asleep is started again. One that refuses to sleep is stopped."""
    failure = folder / "sleep-failure"
    words = ["fake", "--engine", "vllm", *FLAGS, "--idle-sleep", "1s", "--restart", "on-failure"]
    variables = environment(folder, FAKE_VLLM_SLEEP_FAILS=str(failure))
    if end == "refused":
        failure.touch()
    with ServerProcess([*words, "--idle-warm", "off", "--standby", "off"], environment=variables) as server:
        state = "stopped" if end == "refused" else "asleep"
        server.wait(lambda: server.ask("/health").headers.get("model-state") == state)
        assert server.ask("/health").status == 200
        (row,) = server.ask("/status.json").json["models"]
        assert (row["status"], row["reason"], row["num_starts"]) == (state, None, 1)
        if end == "killed":
            os.kill(row["pid"], signal.SIGKILL)
            server.wait(lambda: "fake starts" in server.log.partition("has failed")[2])
            server.wait(lambda: server.health() == 200)
        assert server.ask("/v1/completions", {"prompt": "Once"}).json["choices"][0]["text"] == AWAKE
        server.terminate()


def test_a_command_sleeps_and_wakes_by_its_calls(folder):
    """Tests the keys of llmsnap, and our own keys with a wake that fails."""
    endpoints = {"sleepMode": "enable", "sleepEndpoints": [{"endpoint": "/sleep?level=1"}]}
    usual = foreign("sleeps", **endpoints, wakeEndpoints=[{"endpoint": "/wake_up", "method": "POST", "timeout": 30}])
    calls = {"sleep": [{"path": "/sleep"}], "wake": [{"path": "/wake_up", "body": {"fails": True}}]}
    models = {"a": usual, "b": foreign("sleeps", on_swap="sleep", **calls)}
    with SleepingRouter(folder, models=models) as router:
        pids = {name: router.post(name).json["pid"] for name in "ab"}
        assert router.state("a") == "asleep"
        answer = router.post("a").json
        assert (answer["pid"], answer["asleep"]) == (pids["a"], False)
        assert router.state("b") == "asleep"
        assert router.post("b").json["pid"] != pids["b"]
        router.wait_logged("b has failed: It did not wake: POST /wake_up answers 500")
