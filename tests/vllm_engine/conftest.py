"""Real vLLM for CPU from .peers/vllm, one server at a time, started by `vllm serve` or `vllm-cli serve`."""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pytest

from tests.llamas import save_small_llama
from tests.peer_vllm import ROOT, needs_vllm
from tests.vllm_engine.reference_text import generate
from tests.vllm_engine.vllm_server import VllmServer

PEER_MODEL = ROOT / ".peers" / "model"
SMALL = ("--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8", "--dtype", "float32")


class StartVllm(Protocol):
    """Starts a server of the small model with `launcher`; the `with` block stops it."""

    def __call__(
        self, launcher: str, *arguments: str, model: Path | None = None, environment: dict[str, str] | None = None
    ) -> AbstractContextManager[VllmServer]: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests here as slow; they are skipped without vLLM."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(3000))
            item.add_marker(needs_vllm)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs and caches of all servers: the second start of a kind uses the first one's profile."""
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="session")
def small_model(workplace: Path) -> Path:
    """A model that can be split over two ranks."""
    return save_small_llama(workplace / "small", PEER_MODEL)


@pytest.fixture(scope="session")
def expected_text(small_model: Path) -> str:
    """The small model's output, computed by transformers."""
    return generate(small_model, VllmServer.PROMPT, VllmServer.MAX_TOKENS)


@pytest.fixture(scope="session")
def start_vllm(workplace: Path, small_model: Path) -> StartVllm:
    """Starts servers, each with its own arguments."""

    def start(
        launcher: str, *arguments: str, model: Path | None = None, environment: dict[str, str] | None = None
    ) -> AbstractContextManager[VllmServer]:
        words = arguments if model else (*SMALL, *arguments)
        return VllmServer(launcher, model or small_model, *words, folder=workplace, environment=environment)

    return start


@pytest.fixture(scope="session")
def two_ranks() -> dict[str, str]:
    """Variables that give two workers a CPU each, whatever NUMA nodes vLLM finds on this machine."""
    first, second, *_ = sorted(os.sched_getaffinity(0)) * 2
    return {"VLLM_CPU_OMP_THREADS_BIND": f"{first}|{second}", "VLLM_CPU_KVCACHE_SPACE": "1"}
