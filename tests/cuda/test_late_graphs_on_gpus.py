"""Late CUDA graphs on a GPU, for each feature that `--cuda-graphs auto` excludes until its test has passed.

Each test compares a server that captures late, under load, with one that captures before it is ready.
`GPU_VLLM` names the folder of vLLM's programs, as `make test-gpu` sets it.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.support.cli import run_cli
from tests.support.http_client import LoadClients
from tests.support.peer_vllm import ROOT
from tests.vllm_engine.vllm_server import VllmServer

_VLLM = os.environ.get("GPU_VLLM", "")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.slow,
    pytest.mark.skipif(not _VLLM, reason="GPU_VLLM names no folder with vLLM's programs"),
]
_WORDS = ("--max-model-len", "2048", "--gpu-memory-utilization", "0.5")
_SIZES = (*range(1, 17), 20, 32, 40)


class _Server(VllmServer):
    python = Path(_VLLM) / "python"


def _texts(server: _Server, size: int) -> list[str]:
    """Greedy completions of as many prompts at once."""
    ask = {"model": "model", "max_tokens": 16, "temperature": 0, "ignore_eos": True}
    with ThreadPoolExecutor(size) as pool:
        bodies = [ask | {"prompt": f"{number} and {number + 1} are"} for number in range(size)]
        answers = pool.map(lambda body: server.post("/v1/completions", **body), bodies)
        return [str(answer["choices"][0]["text"]) for answer in answers]


def _compare(folder: Path, *words: str, model: Path, environment: dict[str, str] | None = None) -> None:
    """Texts during the captures equal those with all graphs, and in the end no more memory is taken."""
    found = {}
    for when in ("before-ready", "after-ready"):
        flags = (*_WORDS, "--cuda-graphs", when, *words)
        with _Server("ours", model, *flags, folder=folder, environment=environment) as server:
            server.wait_ready()
            texts = [_texts(server, size) for size in _SIZES]
            with LoadClients(server.port, num_clients=4) as clients:
                assert run_cli("wait", "--graphs", server.url).returncode == 0
            assert set(clients.endings) == {"answered"}, clients.losses
            is_late = "CUDA graphs are captured after readiness" in server.log
            assert is_late == (when == "after-ready")
            found[when] = texts, torch.cuda.mem_get_info()[0]
    assert found["after-ready"][0] == found["before-ready"][0]
    assert found["after-ready"][1] >= found["before-ready"][1] - (64 << 20)


@pytest.fixture
def model() -> Path:
    return Path(os.environ.get("GPU_MODEL", ROOT / ".peers" / "model"))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("words", [("--tensor-parallel-size", "2"), ("--pipeline-parallel-size", "2")])
@pytest.mark.parametrize("more", [(), ("--disable-custom-all-reduce",)], ids=["custom all-reduce", "NCCL"])
def test_several_ranks(tmp_path, model, words, more):
    _compare(tmp_path, *words, *more, model=model)


_FEATURES = {
    "what auto captures late": ((), {}),
    "FlashInfer": (("--attention-backend", "FLASHINFER"), {}),
    "Triton": (("--attention-backend", "TRITON_ATTN"), {}),
    "sleep in the middle": (("--enable-sleep-mode",), {"VLLM_SERVER_DEV_MODE": "1"}),
    "quantized weights": (("--quantization", "fp8"), {}),
    "the older runner": ((), {"VLLM_USE_V2_MODEL_RUNNER": "0"}),
    "batch invariance": ((), {"VLLM_BATCH_INVARIANT": "1"}),
}


@pytest.mark.parametrize(("words", "environment"), _FEATURES.values(), ids=_FEATURES)
def test_a_feature(tmp_path, model, words, environment):
    _compare(tmp_path, *words, model=model, environment=environment)


@pytest.mark.skipif("GPU_MOE_MODEL" not in os.environ, reason="GPU_MOE_MODEL names no mixture of experts")
def test_a_mixture_of_experts(tmp_path):
    environment = {"TRITON_CACHE_DIR": str(tmp_path / "triton")}
    _compare(tmp_path, model=Path(os.environ["GPU_MOE_MODEL"]), environment=environment)
