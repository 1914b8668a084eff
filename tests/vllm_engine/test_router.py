"""A router of two vLLM models: they swap, are started warm, and answer as vLLM does."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.registry import env
from tests.http_answer import Answer, ask
from tests.peer_vllm import PYTHON, ROOT
from tests.ports import free_port
from tests.processes import end_server
from tests.vllm_engine.conftest import SMALL
from tests.vllm_engine.vllm_server import VllmServer
from tests.waiting import wait_until

_START_S = 600.0


class _Router:
    def __init__(self, folder: Path, models: dict[str, object]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = folder / "log"
        file = folder / "models.yaml"
        file.write_text(json.dumps({"models": models}))
        environment = os.environ | {
            env.VCLI_STANDBY.name: "auto",
            "XDG_RUNTIME_DIR": str(folder),
            "TMPDIR": str(folder),
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CACHE_ROOT": str(folder / "cache"),
            "VLLM_NO_USAGE_STATS": "1",
        }
        words = ["--models", str(file), "--port", str(self.port), "--max-running", "1"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(PYTHON), "-m", "vllm_cli", "serve", *words], stdout=log, stderr=log, env=environment
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def complete(self, model: str) -> Answer:
        body = {"model": model, "prompt": VllmServer.PROMPT, "max_tokens": VllmServer.MAX_TOKENS, "temperature": 0}
        return ask(f"{self.url}/v1/completions", body, timeout_s=_START_S)


@pytest.fixture
def router(small_model: Path, tmp_path: Path) -> Iterator[_Router]:
    tmp_path.chmod(0o700)
    entry = {"model": str(small_model), "engine": "vllm", "args": list(SMALL)}
    router = _Router(tmp_path, {"a": entry, "b": {**entry, "aliases": ["second"]}})
    try:
        wait_until(lambda: ask(f"{router.url}/health").status == 200)
        yield router
    finally:
        end_server(router.process, [])


def test_two_vllm_models_swap_and_their_starts_are_warm(router, expected_text, tmp_path):
    wait_until(lambda: list(tmp_path.glob("vllm-cli-standby-*/*-vllm-eager.sock")), _START_S)
    for name in ("a", "b", "second", "a"):
        answer = router.complete(name)
        assert answer.status == 200, router.log
        assert answer.json["choices"][0]["text"] == expected_text
    states = {model["id"]: model["status"] for model in ask(f"{router.url}/v1/models").json["data"]}
    assert states == {"a": "ready", "b": "stopped"}
    assert router.log.count("warm start: forked from the standby's process") == 3
    os.kill(router.process.pid, signal.SIGTERM)
    assert router.process.wait(_START_S) == 0
    left = [*tmp_path.glob("vllm-cli-standby-*"), *tmp_path.glob("vllm-cli-router-*")]
    assert not left
