"""The hub's own client downloads from the fake hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub import HubServer

WEIGHTS = bytes(range(256)) * 4096
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "1_Pooling/config.json": b'{"a": 1}'}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer().serving() as server:
        server.add("org/model", FILES)
        yield server


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client. Xet is off, because its library's threads outlive a test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


def download(hub: HubServer, cache: Path, model: str = "org/model", **settings: Any) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, endpoint=hub.url, cache_dir=cache, **settings))


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_hubs_client_downloads_a_folder_into_blobs_named_as_the_hubs_own(hub, cache, tmp_path):
    """A small file's blob is named by git's hash, and an LFS file's blob by its SHA-256."""
    for name, content in FILES.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content)
    assert hub.add("org/disk", tmp_path / "model").id == hub.revisions["org/model"]["main"].id
    folder = download(hub, cache, "org/disk")
    assert read_tree(folder) == FILES
    assert sorted(hub.downloads) == sorted(f"org/disk/{name}" for name in FILES)
    assert hub.sent["org/disk/model.safetensors"] == len(WEIGHTS)
    blobs = {path.name for path in (folder.parents[1] / "blobs").iterdir()}
    assert "9e26dfeeb6e641a33dae4961196235bdb965b21b" in blobs  # git hash-object of {}
    assert "fbbab289f7f94b25736c58be46a994c441fd02552cc6022352e3d86d2fab7c83" in blobs  # sha256 of WEIGHTS


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"gated": {"org/model"}}, "GatedRepoError"),
        ({"private": {"org/model"}}, "RepositoryNotFoundError"),
        ({"revisions": {}}, "RepositoryNotFoundError"),
        ({"revisions": {"org/model": {}}}, "RevisionNotFoundError"),
        ({"token": "hf_other"}, "HfHubHTTPError"),
    ],
    ids=["gated", "private", "unknown", "revision", "token"],
)
@pytest.mark.parametrize("token", [False, "hf_wrong"], ids=["anonymous", "token"])
def test_refusals_have_the_hubs_meanings(hub, cache, change, error, token):
    for name, value in change.items():
        setattr(hub, name, value)
    if "token" in change and not token:
        assert read_tree(download(hub, cache, token=token)) == FILES
        return
    with pytest.raises(Exception) as caught:
        download(hub, cache, token=token)
    names = [type(err).__name__ for err in (caught.value, caught.value.__cause__) if err]
    assert error in names
