"""Fixtures: a baked folder as `vllm-cli bake` writes it, and a cache folder that precedes it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from startup.storage.caches import CACHE, MANIFEST, OWN, _examine


@pytest.fixture
def baked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty baked folder, which VCLI_BAKED names. The cache folder is `cache` beside it."""
    tmp_path.chmod(0o755)
    folder = tmp_path / "baked"
    (folder / CACHE / OWN).mkdir(parents=True)
    (folder / MANIFEST).write_text("{}")
    monkeypatch.setenv("VCLI_BAKED", str(folder))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    _examine.cache_clear()
    yield folder
    _examine.cache_clear()
