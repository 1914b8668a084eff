"""Two models of a router that do not fit the GPU together: NVML's free memory decides which one runs."""

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.gpu_stub.gpu_server import EAGER, MODEL, PYTHON, gpu_variables, used_bytes
from tests.gpu_stub.private_devices import PREFIX, needs_root
from tests.support.http_client import Answer
from tests.support.peer_vllm import ROOT
from tests.support.ports import free_port
from tests.support.program import Server

pytestmark = needs_root
_TOTAL_BYTES = 85520809984
_MODEL_BYTES = 60 << 30
_START_S = 600.0
_PEAK = """
import select, sys
from base.machine.nvml import read_gpus
peak = 0
while not select.select([sys.stdin], [], [], 0.05)[0]:
    [gpu] = read_gpus().gpus
    peak = max(peak, gpu.total_bytes - gpu.free_bytes)
print(peak)
"""
_HOLD = """
import sys, torch
held = torch.empty(70 << 30, dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


class _Router(Server):
    """Of the models a and b, each of which wants 0.9 of the GPU."""

    poll_s = 0.2

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        file = home / "models.yaml"
        entry = {"model": str(MODEL), "engine": "vllm", "args": [*EAGER, "--gpu-memory-utilization", "0.9"]}
        file.write_text(json.dumps({"models": {"a": entry, "b": entry}}))
        words = ("serve", "--models", file, "--host", "127.0.0.1", "--port", self.port)
        command = [*PREFIX, PYTHON, "-m", "vllm_cli", *words]
        super().__init__(command, gpu_variables(home), is_awaited=True)

    def complete(self, model: str) -> Answer:
        body = {"model": model, "prompt": "a", "max_tokens": 2}
        return self.ask("/v1/completions", body, timeout_s=_START_S)

    def states(self) -> dict[str, str]:
        return {row["id"]: row["status"] for row in self.ask("/status.json").json["models"]}


@contextmanager
def _beside(script: str, home: Path) -> Iterator["subprocess.Popen[str]"]:
    """A Python process on the same GPU, which ends with its standard input."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([PYTHON, "-c", script], env=gpu_variables(home), cwd=ROOT, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_other_model_is_stopped_before_a_model_starts(home):
    with _beside(_PEAK, home) as watcher, _Router(home) as router:
        for name, other in ("ab", "ba", "ab"):
            assert router.complete(name).status == 200, router.log
            assert router.states() == {name: "ready", other: "stopped"}
            assert used_bytes(router.variables) > _MODEL_BYTES
        peak, _ = watcher.communicate()
        assert router.terminate() == 0
    assert _MODEL_BYTES < int(peak) < 0.95 * _TOTAL_BYTES


def test_a_model_waits_for_memory_that_another_program_frees_late(home):
    with _Router(home) as router, _beside(_HOLD, home) as holder, ThreadPoolExecutor(1) as pool:
        assert holder.stdout.readline() == "held\n"
        answer = pool.submit(router.complete, "a")
        router.wait(lambda: _waiting(router, "a"))
        assert router.states() == {"a": "stopped", "b": "stopped"}
        holder.kill()
        assert answer.result().status == 200, router.log
        assert router.terminate() == 0


def _waiting(router: _Router, name: str) -> int:
    [row] = [row for row in router.ask("/status.json").json["models"] if row["id"] == name]
    return int(row["num_waiting"])
