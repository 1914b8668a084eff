"""Fixtures: empty caches."""

from pathlib import Path

import pytest

from envs.registry import env


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    for variable in (env.HF_HUB_OFFLINE, env.TRANSFORMERS_OFFLINE, env.HF_TOKEN, env.HF_ENDPOINT):
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "vllm"))
    return tmp_path / "hub"
