"""vLLM's CUDA build in .peers/cuda on the stand-in for the GPU in .peers/gpu_stub: no kernel runs."""

from pathlib import Path

import pytest

from tests.gpu_stub.gpu_server import PYTHON, STUB

_MISSING = [str(path) for path in (PYTHON, STUB / "preload") if not path.exists()]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests here; they are skipped without the CUDA build or the stand-in."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.gpu_stub)
            item.add_marker(pytest.mark.timeout(1500))
            item.add_marker(pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of all starts of a file."""
    return tmp_path_factory.mktemp("home")
