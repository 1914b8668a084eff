"""A fork beside CUDA saves a compiled model: a file as of vLLM. No end of the fork harms the server."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.gpu_stub import saving_twice
from tests.gpu_stub.gpu_server import GpuServer
from tests.vllm_engine.plugin import write_entry_point

_WORDS = ("--max-model-len", "2048")
_TITLE = "vllm-cli saves the compiled model"
_LENGTH = 1 << 17
"""A request of this length needs 2.8 GiB of KV cache."""


def _saved(home: Path) -> list[Path]:
    """The files that vLLM has saved for this rank, whole or not."""
    return sorted(home.rglob("torch_aot_compile/*/rank_*/model*"))


def test_the_fork_calls_nothing_of_cuda_and_writes_what_the_process_writes(tmp_path):
    write_entry_point(tmp_path, saving_twice)
    with GpuServer("ours", *_WORDS, folder=tmp_path, environment={"PYTHONPATH": str(tmp_path)}) as server:
        server.wait(lambda: server.titled(_TITLE))
        (fork,) = server.titled(_TITLE)
        server.wait_ready()
    by_fork, by_process = _saved(tmp_path)
    assert by_process.name == f"{by_fork.name}{saving_twice.OWN}"
    assert by_fork.read_bytes() == by_process.read_bytes()
    calls = (tmp_path / "cuda.log").read_text().splitlines()
    assert calls
    assert not [line for line in calls if line.startswith(f"{fork.pid} ")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM], ids=lambda number: number.name)
def test_a_server_whose_fork_ends_or_hangs_saves_the_model_itself(tmp_path, number):
    with GpuServer("ours", *_WORDS, folder=tmp_path) as server:
        server.wait(lambda: server.titled(_TITLE))
        (fork,) = server.titled(_TITLE)
        os.kill(fork.pid, number)
        text = server.wait_ready().generate()
        assert not server.titled(_TITLE)
        assert server.terminate(signal.SIGTERM) == 0
    assert [path.name for path in _saved(tmp_path)] == ["model"]
    with GpuServer("ours", *_WORDS, folder=tmp_path) as server:
        assert server.wait_ready().generate() == text
    assert "Directly load AOT compilation" in server.log


def test_a_start_that_fails_after_compiling_keeps_what_it_has_compiled(tmp_path):
    longer = ("--max-model-len", str(_LENGTH), "--hf-overrides", json.dumps({"max_position_embeddings": _LENGTH}))
    arguments = (*longer, "--gpu-memory-utilization", "0.8", "--preflight", "warn")
    with GpuServer("ours", *arguments, folder=tmp_path, environment={"STUB_MEMORY": str(3 << 30)}) as server:
        server.wait(lambda: server.process.poll() is not None)
        assert server.process.returncode == 3
    assert "KV cache" in server.log
    assert [path.name for path in _saved(tmp_path)] == ["model"]
