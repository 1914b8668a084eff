"""A model on the stand-in for the hub, and empty caches."""

from pathlib import Path
from typing import Final

import pytest

from envs.registry import env
from startup.model import hub
from tests.hub.server import HubServer

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
MODEL: Final = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights", "tokenizer.json": b"{}"}


@pytest.fixture
def hub_server(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """With a model, and long timeouts for a busy machine."""
    monkeypatch.setattr(hub, "REQUEST_TIMEOUT_S", 120.0)
    monkeypatch.setattr(hub, "_DEADLINE_S", 120.0)
    hub_server.add("org/model", MODEL, commit=COMMIT)
    return hub_server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in (env.HF_HUB_OFFLINE, env.TRANSFORMERS_OFFLINE, env.HF_TOKEN, env.HF_ENDPOINT):
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "vllm"))
    return tmp_path / "hub"
