"""A fake hub, and empty caches."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.registry import env
from startup.model import hub
from tests.http_server import serving
from tests.startup.model.hub_server import MODEL, Hub


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that answers at once, with long timeouts for a busy machine."""
    monkeypatch.setattr(hub, "REQUEST_TIMEOUT_S", 120.0)
    monkeypatch.setattr(hub, "_DEADLINE_S", 120.0)
    with serving(Hub()) as server:
        server.models["org/model"] = dict(MODEL)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in (env.HF_HUB_OFFLINE, env.TRANSFORMERS_OFFLINE, env.HF_TOKEN, env.HF_ENDPOINT):
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "vllm"))
    return tmp_path / "hub"
