"""vLLM's CUDA build on the stand-in for a GPU, one server at a time; `make gpu-env` installs both."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gpu_stub.stub_server import CUDA, STUB, StubServer

StartStub = Callable[..., StubServer]
"""Starts a server with `launcher` and further words, in `home` or in the test's own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests here; they are skipped without the CUDA build."""
    is_missing = not ((CUDA / "bin" / "vllm").exists() and (STUB / "preload").exists())
    needs_stub = pytest.mark.skipif(is_missing, reason=f"`make gpu-env` has not installed {CUDA} and {STUB}")
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.gpu_stub)
            item.add_marker(pytest.mark.timeout(3000))
            item.add_marker(needs_stub)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with caches and profiles that tests share."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def start_stub(tmp_path: Path) -> StartStub:
    def start(launcher: str, *words: str, home: Path = tmp_path, **options: dict[str, str]) -> StubServer:
        return StubServer(launcher, home, *words, **options)

    return start
