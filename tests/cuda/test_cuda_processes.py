"""Only the engine process uses the GPU; its memory is freed however the server ends."""

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from envs.registry import START_METHODS
from tests.cuda.gpu import used_mib, uses_cuda
from tests.e2e.process_tree import wait_process
from tests.e2e.server_process import ServerProcess
from tests.waiting import wait_until

pytestmark = pytest.mark.cuda

_GONE_S = 60.0
_CONTEXT_MIB = 100
"""Less than the CUDA context of one process takes."""


@pytest.fixture
def arguments(llama_folder: Path) -> list[str]:
    return [str(llama_folder), "--served-model-name", "tiny", "--max-num-seqs", "8"]


@pytest.mark.parametrize("method", START_METHODS)
def test_only_the_engine_initializes_cuda(arguments: list[str], method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", method)
    with ServerProcess(arguments) as server:
        _complete(server)
        assert [process for process in server.family() if uses_cuda(process)] == [wait_process(server, "engine")]


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
def test_memory_is_freed_when_the_server_ends(
    arguments: list[str], method: str, signal_number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", method)
    before = used_mib()
    with ServerProcess(arguments) as server:
        _complete(server)
        assert used_mib() > before + _CONTEXT_MIB
        family = server.family()
        server.terminate(signal_number)
        _, left = psutil.wait_procs(family, timeout=_GONE_S)
        assert not left
    wait_until(lambda: used_mib() < before + _CONTEXT_MIB)


def test_with_a_hidden_gpu_the_engine_runs_on_the_cpu(arguments: list[str]) -> None:
    with ServerProcess(arguments, environment={"CUDA_VISIBLE_DEVICES": ""}) as server:
        _complete(server)
        assert not any(uses_cuda(process) for process in server.family())


def test_cache_larger_than_the_gpu_fails_the_start_with_one_line(arguments: list[str]) -> None:
    huge = ["--max-num-seqs", "10000000", "--kv-cache-memory-bytes", str(1 << 50)]
    run = subprocess.run(
        [sys.executable, "-m", "vllm_cli", "serve", *arguments, *huge, "--port", "0"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 3
    assert "lower --gpu-memory-utilization or --kv-cache-memory-bytes" in run.stderr
    assert "Traceback" not in run.stderr


def test_bug_report_names_the_gpu() -> None:
    run = subprocess.run([sys.executable, "-m", "vllm_cli", "collect-env"], capture_output=True, text=True, check=True)
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("gpus: ")]
    assert "MiB" in line


def _complete(server: ServerProcess) -> None:
    """Generates two tokens."""
    body = b'{"model": "tiny", "prompt": "Paris", "max_tokens": 2}'
    request = urllib.request.Request(f"{server.url}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=_GONE_S) as response:
        assert response.status == 200
