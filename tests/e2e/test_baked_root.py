"""First starts in a root file system of its own, with a baked folder that is read-only and root's."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import run_cli
from tests.containers import as_user, overlay_root
from tests.e2e.server_process import ServerProcess
from tests.page_cache import evict

pytestmark = [
    pytest.mark.alone,  # evicts files, which takes long while others read
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount"),
]

_FRESH = {"HOME": "/fresh", "VLLM_CACHE_ROOT": "/fresh/cache", "VCLI_LOG_FORMAT": "text"}
_USER = 12345


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """A folder on disk, whose files can be part of an image."""
    with tempfile.TemporaryDirectory(prefix="vllm-cli-image-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def own_model(image: Path, model_path: Path) -> Path:
    """A copy, since a file that servers of other tests map cannot be evicted."""
    return Path(shutil.copytree(model_path, image / model_path.name))


@pytest.fixture(scope="module")
def baked(image: Path, own_model: Path) -> Path:
    output = image / "baked"
    done = run_cli("bake", own_model, "--engine", "embedded", "--max-model-len", 256, "--output", output)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory for the changes of a root."""
    with tempfile.TemporaryDirectory(prefix="vllm-cli-root-", dir="/dev/shm") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("is_root", [True, False], ids=["root", "user"])
def test_a_first_start_uses_the_baked_folder_and_writes_only_to_its_cache(is_root, baked, memory, own_model):
    root = overlay_root(memory, read_only=baked)
    if root is None:
        pytest.skip("no overlay can be mounted here")
    user = () if is_root else as_user(_USER, _USER, Path(sys.executable), own_model / "model.safetensors")
    if user is None:
        pytest.skip("another user cannot read the interpreter or the model here")
    home = memory / "upper" / "fresh"
    home.mkdir()
    if not is_root:
        os.chown(home, _USER, _USER)
    evict(own_model / "model.safetensors")
    words = [str(own_model), "--engine", "embedded", "--max-model-len", "256"]
    with ServerProcess(words, environment={**_FRESH, "VCLI_BAKED": str(baked)}, launcher=(*root, *user)) as server:
        assert "is not used" not in server.log
    cache = home / "cache" / "vllm_cli"
    assert (cache / "history.jsonl").exists()
    assert not list(cache.glob("imports/*.json"))  # the package scan is the baked one
    assert [path for path in (memory / "upper").rglob("*") if baked.name in path.name and path.is_file()] == []
