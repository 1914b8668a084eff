"""Fixtures: downloads from the fake hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.startup.files.download.downloads import MODEL as LARGER_MODEL
from tests.startup.files.download.downloads import Downloads
from tests.support.hub import HubServer

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
MODEL: Final = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights", "tokenizer.json": b"{}"}


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in MODEL.items():
        (folder / name).write_bytes(content)
    return folder


def write_snapshot(cache: Path, model_id: str) -> Path:
    """Writes the small model into the cache, as its main branch."""
    repository = cache / f"models--{model_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return write_model(repository / "snapshots" / COMMIT)


@pytest.fixture
def hub_server(hub_server: HubServer) -> HubServer:
    """The fake hub with a small model."""
    hub_server.add("org/model", MODEL, commit=COMMIT)
    return hub_server


@pytest.fixture
def downloads(
    hub_server: HubServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Downloads]:
    """Downloads of `org/model` in this process, without Xet, because its library's threads outlive a test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    hub_server.add("org/model", LARGER_MODEL)
    yield Downloads(hub_server, cache)
    from huggingface_hub.utils import close_session

    close_session()
