"""Records of a start speed up the next start, and so does the folder that `vllm-cli bake` writes."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from startup.ground.caches import CACHE
from tests.support.containers import as_user, overlay_root
from tests.support.page_cache import evict
from tests.support.peer_vllm import PYTHON, ROOT
from tests.vllm_engine.conftest import SMALL
from tests.vllm_engine.vllm_server import VllmServer


def _bake(model: Path, *words: object) -> None:
    command = (PYTHON, "-m", "vllm_cli", "bake", model, "--engine", "vllm", *SMALL, *words)
    variables = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(
        list(map(str, command)), env={**os.environ, **variables}, cwd="/", capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def baked(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image") / "baked"
    _bake(small_model, "--output", folder)
    return folder


@pytest.fixture(scope="module")
def image(baked: Path) -> Iterator[Path]:
    """A copy of the baked folder that every user can read."""
    with tempfile.TemporaryDirectory(prefix="vllm-cli-image-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(shutil.copytree(baked, Path(folder, "baked")))


def _times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_first_start_has_what_the_build_has_learned(baked, small_model, expected_text, tmp_path):
    before = _times(baked)
    with VllmServer("ours", small_model, *SMALL, folder=tmp_path, environment={"VCLI_BAKED": str(baked)}) as server:
        server.wait_ready()
        assert server.generate() == expected_text
    assert _times(baked) == before
    name = "vllm-model_executor-models-llama-LlamaForCausalLM.json"
    laid = tmp_path / "cache" / "modelinfos" / name
    assert laid.read_bytes() == (baked / CACHE / "modelinfos" / name).read_bytes()
    (profile,) = (tmp_path / "cache" / "vllm_cli" / "preload").iterdir()
    assert '"num_starts":2' in profile.read_text()  # continues the profile of the build


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
@pytest.mark.parametrize("user", [0, 12345], ids=["root", "user"])
def test_a_fresh_root_starts_from_a_read_only_folder(user, image, small_model, expected_text, tmp_path):
    """Weights are evicted before the start. All written files are in the new root."""
    with tempfile.TemporaryDirectory(prefix="vllm-cli-root-", dir="/dev/shm") as memory:
        Path(memory).chmod(0o755)
        root = overlay_root(Path(memory), read_only=image)
        as_someone = as_user(user, user, PYTHON, small_model / "model.safetensors") if user else ()
        if root is None or as_someone is None:
            pytest.skip("no overlay can be mounted here, or another user cannot read the model")
        home = Path(memory, "upper", "fresh")
        home.mkdir()
        os.chown(home, user, user)
        evict(small_model / "model.safetensors")
        variables = {"HOME": "/fresh", "TMPDIR": "/fresh", "VLLM_CACHE_ROOT": "/fresh/cache", "VCLI_BAKED": str(image)}
        prefix = (*root, *as_someone)
        with VllmServer("ours", small_model, *SMALL, folder=tmp_path, environment=variables, prefix=prefix) as server:
            server.wait_ready()
            assert server.generate() == expected_text
            server.wait_logged("ready after")
        assert "not used" not in server.log
        assert list((home / "cache" / "modelinfos").iterdir())
        assert not list((home / "cache" / "vllm_cli" / "imports").glob("*.json"))  # the build's scan is used
