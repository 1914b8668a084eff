"""A router of vLLM models, or of one model that stops when idle. Starts are warm, and answers are right."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.registry import env
from tests.support.http_client import Answer
from tests.support.peer_vllm import PYTHON, ROOT
from tests.support.ports import free_port
from tests.support.program import Server
from tests.support.waiting import wait_until
from tests.vllm_engine.conftest import SMALL
from tests.vllm_engine.vllm_server import ENVIRONMENT, VllmServer

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
