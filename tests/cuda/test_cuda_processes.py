"""Only the engine process uses the GPU; its memory is freed however the server ends."""

import signal
from pathlib import Path

import pytest

from envs.registry import START_METHODS
from tests.cli import run_cli
from tests.cuda.gpu import used_mib, uses_cuda
from tests.e2e.process_tree import wait_process
from tests.e2e.server_process import ServerProcess
from tests.processes import assert_gone
from tests.waiting import wait_until

pytestmark = pytest.mark.cuda

_CONTEXT_MIB = 100
"""Less than the CUDA context of one process takes."""


@pytest.fixture
def arguments(llama_folder: Path) -> list[str]:
    return [str(llama_folder), "--served-model-name", "tiny", "--max-num-seqs", "8"]


@pytest.mark.thorough
@pytest.mark.parametrize("method", START_METHODS)
def test_only_the_engine_initializes_cuda(arguments, method, monkeypatch):
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", method)
    with ServerProcess(arguments) as server:
        assert server.complete(max_tokens=2) == 200
        assert [process for process in server.family() if uses_cuda(process)] == [wait_process(server, "engine")]


@pytest.mark.thorough
@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
def test_memory_is_freed_when_the_server_ends(arguments, method, signal_number, monkeypatch):
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", method)
    before = used_mib()
    with ServerProcess(arguments) as server:
        assert server.complete(max_tokens=2) == 200
        assert used_mib() > before + _CONTEXT_MIB
        family = server.family()
        server.terminate(signal_number)
        assert_gone(family)
    wait_until(lambda: used_mib() < before + _CONTEXT_MIB)


@pytest.mark.thorough
def test_with_a_hidden_gpu_the_engine_runs_on_the_cpu(arguments):
    with ServerProcess(arguments, environment={"CUDA_VISIBLE_DEVICES": ""}) as server:
        assert server.complete(max_tokens=2) == 200
        assert not any(uses_cuda(process) for process in server.family())


def test_cache_larger_than_the_gpu_fails_the_start_with_one_line(arguments):
    huge = ["--max-num-seqs", "10000000", "--kv-cache-memory-bytes", str(1 << 50)]
    run = run_cli("serve", *arguments, *huge, "--port", "0")
    assert run.returncode == 3
    assert "lower --gpu-memory-utilization or --kv-cache-memory-bytes" in run.stderr
    assert "Traceback" not in run.stderr


def test_bug_report_names_the_gpu():
    (line,) = [line for line in run_cli("collect-env").stdout.splitlines() if line.startswith("gpus: ")]
    assert "MiB" in line
