"""Late CUDA graphs on a GPU, for each feature that `--cuda-graphs auto` excludes until its test has passed.

Each test compares a server that captures late, under load, with one that captures before it is ready.
`GPU_VLLM` names the folder of vLLM's programs, as `make test-gpu` sets it.
"""

import json
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from startup.vllm.patches.graphs.graph_proof import BASE, STATES, GpuRun, without_build
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
PROPERTY = "late_graphs"
"""What `make test-gpu` looks for in the report of this file."""
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


@pytest.fixture
def compare(tmp_path, model, record_property):
    """Compares texts of servers that capture late, cold and warm, with those of one that captures before."""

    def run(feature: str, *arguments: str, model: Path = model, environment: dict[str, str] | None = None) -> None:
        found = {}
        for state, launcher, when in _STARTS:
            flags = (*_WORDS, "--cuda-graphs", when, *arguments)
            with _Server(launcher, model, *flags, folder=tmp_path, environment=environment) as server:
                server.wait_ready()
                texts = [_texts(server, size) for size in _SIZES]
                with LoadClients(server.port, num_clients=4) as clients:
                    assert run_cli("wait", "--graphs", server.url).returncode == 0
                assert set(clients.endings) == {"answered"}, clients.losses
                is_late = "CUDA graphs are captured after readiness" in server.log
                assert is_late == (when == "after-ready")
                found[state] = texts, torch.cuda.mem_get_info()[0]
                backend = re.search(r"Using (\w+) attention backend", server.log)
        for state in STATES:
            assert found[state][0] == found["before"][0]
            assert found[state][1] >= found["before"][1] - (64 << 20)
            capability = "{}.{}".format(*torch.cuda.get_device_capability())
            name, vllm = backend[1] if backend else "", without_build(_vllm_version())
            shown = GpuRun(feature, state, name, capability, vllm)
            record_property(f"{PROPERTY}-{state}", json.dumps(shown._asdict()))

    return run


_STARTS = (("cold", "ours", "after-ready"), ("before", "ours", "before-ready"), ("warm", "warm", "after-ready"))
"""The name of a start, its launcher, and when it captures. The first one has empty caches."""


def _vllm_version() -> str:
    code = "import importlib.metadata as m; print(m.version('vllm'))"
    return subprocess.check_output([_Server.python, "-c", code], text=True).strip()


@pytest.fixture
def model() -> Path:
    return Path(os.environ.get("GPU_MODEL", ROOT / ".peers" / "model"))


def test_the_default(compare):
    """The first step of `make test-gpu`. Without it, `auto` captures nothing late."""
    compare(BASE)


FEATURES = {
    "FlashInfer": (("--attention-backend", "FLASHINFER"), {}),
    "Triton": (("--attention-backend", "TRITON_ATTN"), {}),
    "sleep in the middle": (("--enable-sleep-mode",), {"VLLM_SERVER_DEV_MODE": "1"}),
    "quantized weights": (("--quantization", "fp8"), {}),
    "the older runner": ((), {"VLLM_USE_V2_MODEL_RUNNER": "0"}),
    "batch invariance": ((), {"VLLM_BATCH_INVARIANT": "1"}),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature(compare, feature):
    arguments, environment = FEATURES[feature]
    compare(feature, *arguments, environment=environment)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_several_ranks(compare):
    compare("several ranks", "--tensor-parallel-size", "2")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(
    "arguments",
    [("--tensor-parallel-size", "2", "--disable-custom-all-reduce"), ("--pipeline-parallel-size", "2")],
    ids=["NCCL", "pipeline"],
)
def test_several_ranks_in_other_ways(compare, arguments):
    compare("several ranks in another way", *arguments)


@pytest.mark.skipif("GPU_MOE_MODEL" not in os.environ, reason="GPU_MOE_MODEL names no mixture of experts")
def test_a_mixture_of_experts(compare, tmp_path):
    environment = {"TRITON_CACHE_DIR": str(tmp_path / "triton")}
    compare("a mixture of experts", model=Path(os.environ["GPU_MOE_MODEL"]), environment=environment)
