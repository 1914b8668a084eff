"""A baked folder as `vllm-cli bake` writes it, and a cache folder on top."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from startup.caches import CACHE, OWN, Manifest, _examine


def write_manifest(folder: Path) -> Manifest:
    """Writes a manifest into the folder."""
    manifest = Manifest(
        bake_id="first",
        created_at="2026-01-01T00:00:00+00:00",
        engine="vllm",
        words=("model", "--enforce-eager"),
        model="",
        packages={},
        left_out={"bytecode": "not needed"},
    )
    manifest.save(folder)
    return manifest


@pytest.fixture
def baked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty baked folder, which VCLI_BAKED names; the cache folder is `cache` beside it."""
    tmp_path.chmod(0o755)
    folder = tmp_path / "baked"
    (folder / CACHE / OWN).mkdir(parents=True)
    write_manifest(folder)
    monkeypatch.setenv("VCLI_BAKED", str(folder))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    _examine.cache_clear()
    yield folder
    _examine.cache_clear()
