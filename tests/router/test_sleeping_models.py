"""Models sleep instead of being stopped: the fake vLLM by its control socket, commands by HTTP calls."""

import json
from collections.abc import Iterator
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


def test_one_model_sleeps_behind_its_port(folder):
    words = ["fake", "--engine", "vllm", *FLAGS, "--idle-sleep", "1s", "--standby", "off"]
    with ServerProcess(words, environment=environment(folder)) as server:
        server.wait(lambda: server.ask("/health").headers.get("model-state") == "asleep")
        assert server.ask("/status.json").json["status"] == "asleep"
        assert {server.ask(path).status for path in ("/health", "/readyz", "/readyz?model")} == {200}
        answer = server.ask("/v1/completions", {"prompt": "Once"})
        assert answer.json["choices"][0]["text"] == AWAKE
        assert "models" in server.ask("/status.json").json  # so that the page has its chat
        assert server.terminate() == 0


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
