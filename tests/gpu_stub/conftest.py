"""Runs vLLM's CUDA build (.peers/cuda) on the stand-in for the GPU (.peers/gpu_stub), without kernels."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu_stub.gpu_server import PYTHON, STUB

_MISSING = [str(path) for path in (PYTHON, STUB / "preload") if not path.exists()]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests in this folder. They are skipped if the CUDA build or the stand-in is missing."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.gpu_stub)
            item.add_marker(pytest.mark.timeout(1500))
            item.add_marker(pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder of all starts of a test file."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="gs", dir="/tmp") as name:
        yield Path(name)
