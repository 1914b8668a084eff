"""Fixtures: one server at a time of real vLLM for CPU (.peers/vllm), by `vllm serve` or `vllm-cli serve`."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.llamas import save_small_llama
from tests.support.peer_vllm import ROOT, needs_vllm
from tests.vllm_engine.vllm_server import VllmServer

PEER_MODEL = ROOT / ".peers" / "model"
SMALL = ("--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8", "--dtype", "float32")


StartVllm = Callable[..., VllmServer]
"""Starts a server with `launcher` and further arguments. The default model is the small model."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests in this folder as slow. They are skipped if vLLM is missing."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(3000))
            item.add_marker(needs_vllm)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for logs and caches of all servers. Later starts of a kind use the first one's profile."""
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="session")
def small_model(workplace: Path) -> Path:
    """A model that can be split over two ranks."""
    return save_small_llama(workplace / "small", PEER_MODEL)


@pytest.fixture(scope="session")
def expected_text(small_model: Path) -> str:
    """The small model's output, computed by transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(small_model)
    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32).eval()
    tokens = tokenizer(VllmServer.PROMPT, return_tensors="pt")
    num_tokens = {"max_new_tokens": VllmServer.MAX_TOKENS, "min_new_tokens": VllmServer.MAX_TOKENS}
    with torch.no_grad():
        ids = model.generate(**tokens, **num_tokens, do_sample=False)
    return str(tokenizer.decode(ids[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.fixture(scope="session")
def start_vllm(workplace: Path, small_model: Path) -> StartVllm:
    def start(
        launcher: str, *arguments: str, model: Path | None = None, environment: dict[str, str] | None = None
    ) -> VllmServer:
        limits = () if model else SMALL
        return VllmServer(
            launcher, model or small_model, *limits, *arguments, folder=workplace, environment=environment
        )

    return start


@pytest.fixture(scope="session")
def two_ranks() -> dict[str, str]:
    """Variables that give each of two workers a CPU, independently of this machine's NUMA nodes."""
    first, second, *_ = sorted(os.sched_getaffinity(0)) * 2
    return {"VLLM_CPU_OMP_THREADS_BIND": f"{first}|{second}", "VLLM_CPU_KVCACHE_SPACE": "1"}
