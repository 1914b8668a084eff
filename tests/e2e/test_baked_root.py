"""First starts in a root file system of its own, with a baked folder that is read-only and root's."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server_process import ServerProcess
from tests.hardened import as_user
from tests.overlay_root import overlay_root
from tests.page_cache import evict

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.alone,  # evicts the model, which other tests map
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount"),
]

_FRESH = {"HOME": "/fresh", "VLLM_CACHE_ROOT": "/fresh/cache", "VCLI_LOG_FORMAT": "text"}
_USER = 12345


@pytest.fixture(scope="module")
def baked(model_path: Path) -> Iterator[Path]:
    """On disk, so that it can be part of the image."""
    with tempfile.TemporaryDirectory(prefix="vllm-cli-image-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        output = Path(folder, "baked")
        words = ("bake", model_path, "--engine", "embedded", "--max-model-len", 256, "--output", output)
        done = subprocess.run([sys.executable, "-m", "vllm_cli", *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        yield output


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory for the changes of a root."""
    with tempfile.TemporaryDirectory(prefix="vllm-cli-root-", dir="/dev/shm") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("is_root", [True, False], ids=["root", "user"])
def test_a_first_start_uses_the_baked_folder_and_writes_only_to_its_cache(
    is_root: bool, baked: Path, memory: Path, model_path: Path
) -> None:
    root = overlay_root(memory, read_only=baked)
    if root is None:
        pytest.skip("no overlay can be mounted here")
    user = () if is_root else as_user(_USER, _USER, Path(sys.executable), model_path / "model.safetensors")
    if user is None:
        pytest.skip("another user cannot read the interpreter or the model here")
    home = memory / "upper" / "fresh"
    home.mkdir()
    if not is_root:
        os.chown(home, _USER, _USER)
    evict(model_path / "model.safetensors")
    words = [str(model_path), "--engine", "embedded", "--max-model-len", "256"]
    with ServerProcess(words, environment={**_FRESH, "VCLI_BAKED": str(baked)}, launcher=(*root, *user)) as server:
        assert "is not used" not in server.log
    cache = home / "cache" / "vllm_cli"
    assert (cache / "history.jsonl").exists()
    assert not list(cache.glob("imports/*.json"))  # the package scan is the baked one
    assert [path for path in (memory / "upper").rglob("*") if baked.name in path.name and path.is_file()] == []
