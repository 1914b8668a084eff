"""A router of vLLM models, or of one model that stops when idle. Starts are warm, and answers are right."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from envs.registry import env
from tests.support.cli import run_cli
from tests.support.http_client import Answer, RawClient, ask
from tests.support.peer_vllm import PYTHON, ROOT
from tests.support.ports import free_port
from tests.support.program import Server
from tests.support.waiting import wait_until
from tests.vllm_engine.conftest import SMALL
from tests.vllm_engine.vllm_server import ENVIRONMENT, VllmServer, title_of

_START_S = 600.0


class _Router(Server):
    def __init__(self, folder: Path, models: dict[str, object], *words: str) -> None:
        self.port = free_port()
        file = folder / "models.yaml"
        file.write_text(json.dumps({"models": models}))
        environment = {
            **os.environ,
            **ENVIRONMENT,
            env.VCLI_STANDBY.name: "auto",
            "XDG_RUNTIME_DIR": str(folder),
            "TMPDIR": str(folder),
            "PYTHONPATH": str(ROOT),
            "VLLM_CACHE_ROOT": str(folder / "cache"),
        }
        command = [PYTHON, "-m", "vllm_cli", "serve", "--models", file, "--port", self.port, *words]
        super().__init__(command, environment, is_awaited=True)

    def complete(self, model: str) -> Answer:
        body = {"model": model, "prompt": VllmServer.PROMPT, "max_tokens": VllmServer.MAX_TOKENS, "temperature": 0}
        return self.ask("/v1/completions", body, timeout_s=_START_S)


@pytest.fixture
def router(small_model: Path, tmp_path: Path) -> Iterator[_Router]:
    tmp_path.chmod(0o700)
    entry = {"model": str(small_model), "engine": "vllm", "args": list(SMALL)}
    with _Router(tmp_path, {"a": entry, "b": {**entry, "aliases": ["second"]}}, "--max-running", "1") as router:
        yield router


def test_two_vllm_models_swap_and_their_starts_are_warm(router, expected_text, tmp_path):
    wait_until(lambda: list(tmp_path.glob("vcli-*/standby-*/*-vllm-eager.sock")), _START_S)
    for name in ("a", "b", "second", "a"):
        answer = router.complete(name)
        assert answer.status == 200, router.log
        assert answer.json["choices"][0]["text"] == expected_text
    states = {model["id"]: model["status"] for model in router.ask("/v1/models").json["data"]}
    assert states == {"a": "ready", "b": "stopped"}
    assert router.log.count("warm start: forked from the standby's process") == 3
    assert router.terminate(timeout_s=_START_S) == 0
    assert not list(tmp_path.glob("vcli-*"))


_BODY = {"model": "model", "prompt": VllmServer.PROMPT, "max_tokens": VllmServer.MAX_TOKENS, "temperature": 0}


def _wait_stopped(server: VllmServer) -> None:
    wait_until(lambda: ask(f"{server.url}/health").headers.get("model-state") == "stopped", 600)


def _texts(server: VllmServer, number: int) -> list[str]:
    def ask_model(_: int) -> str:
        answer = ask(f"{server.url}/v1/completions", _BODY, timeout_s=600)
        assert answer.status == 200, answer.body
        return str(answer.json["choices"][0]["text"])

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(ask_model, range(number)))


def test_vllm_stops_and_is_started_warm_by_requests(start_vllm, expected_text, tmp_path):
    tmp_path.chmod(0o700)
    environment = {"VCLI_STANDBY": "auto", "XDG_RUNTIME_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    with start_vllm("ours", "--idle-stop", "2s", environment=environment) as server:
        server.wait_ready()
        assert _texts(server, 1) == [expected_text]
        _wait_stopped(server)
        wait_until(lambda: list(tmp_path.glob("vcli-*/standby-*/*-vllm-eager.sock")), 600)
        entries = json.loads(run_cli("ps", "--json").stdout)
        (entry,) = [each for each in entries if each["port"] == server.port]
        assert (entry["state"], entry["pid"]) == ("stopped", server.process.pid)
        metrics = ask(f"{server.url}/metrics").body.decode().splitlines()
        assert 'vllm_cli:model_state{model="model",state="stopped"} 1.0' in metrics
        assert [line for line in metrics if line.startswith("vllm:generation_tokens_total{")]
        assert ask(f"{server.url}/v1/models").json["data"][0]["id"] == "model"
        assert _texts(server, 8) == [expected_text] * 8
        assert "warm start: forked from the standby's process" in server.log
        metrics = ask(f"{server.url}/metrics").body.decode().splitlines()
        assert 'vllm_cli:model_starts_total{model="model"} 2.0' in metrics
        with RawClient(server.port) as client:
            for _ in range(2):
                assert client.post("/v1/completions", _BODY).read().status == 200
                _wait_stopped(server)
        assert server.terminate(signal.SIGTERM) == 0
    assert not list(tmp_path.glob("vcli-*"))


def test_keys_of_vllms_file_are_those_of_the_port(start_vllm, expected_text, tmp_path):
    """The test has two starts. Only in the second start, the preflight knows the types of settings."""
    (tmp_path / "keys.yaml").write_text("api-key: ${SERVER_KEY}\nmax-num-seqs: ${NUM:-2}\nenforce-eager: ${EAGER}\n")
    environment = {"SERVER_KEY": "secret-key", "EAGER": "true"}
    words = ("--restart", "on-failure", "--idle-warm", "off", "--config", str(tmp_path / "keys.yaml"))
    for _ in range(2):
        with start_vllm("ours", *words, environment=environment) as server:
            server.wait_ready()
            assert server.ask("/v1/models").status == 401
            assert server.ask("/api/models/unload", {"model": "model"}).status == 401
            answer = ask(f"{server.url}/v1/completions", _BODY, timeout_s=600, key="secret-key")
            assert answer.json["choices"][0]["text"] == expected_text
            assert server.terminate(signal.SIGTERM) == 0


def test_a_killed_engine_of_vllm_is_started_warm_behind_the_same_port(start_vllm, expected_text, tmp_path):
    tmp_path.chmod(0o700)
    environment = {"VCLI_STANDBY": "auto", "XDG_RUNTIME_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    words = ("--restart", "on-failure:9", "--max-wait", "600", "--api-key", "secret-key")
    with start_vllm("ours", *words, environment=environment) as server:
        server.wait_ready()
        wait_until(lambda: list(tmp_path.glob("vcli-*/standby-*/*-vllm-eager.sock")), 600)
        took_s = []
        for _ in range(3):
            (engine,) = [each for each in server.family() if title_of(each).startswith("EngineCore")]
            begin_s = time.monotonic()
            engine.kill()
            wait_until(
                lambda: ask(f"{server.url}/v1/completions", _BODY, timeout_s=600, key="secret-key").status == 200
            )
            took_s.append(time.monotonic() - begin_s)
        print(f"killed to next answer: {took_s}")
        answer = ask(f"{server.url}/v1/completions", _BODY, timeout_s=600, key="secret-key")
        assert answer.json["choices"][0]["text"] == expected_text
        assert ask(f"{server.url}/v1/completions", _BODY, timeout_s=600).status == 401
        assert "warm start: forked from the standby's process" in server.log  # a busy template may be late
        others = [title_of(each) for each in server.family() if each.pid != server.process.pid]
        assert "secret-key" not in " ".join(others)
        assert server.terminate(signal.SIGTERM) == 0
