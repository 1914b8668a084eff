"""The stand-in for the hub, used by the hub's own client."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.hub.faults import Fault
from tests.hub.server import HubServer

WEIGHTS = bytes(range(256)) * 4096
"""1 MiB."""
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "1_Pooling/config.json": b'{"a": 1}'}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer().serving() as server:
        server.add("org/model", FILES)
        yield server


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Xet is off; its client is a library with threads that outlive a test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


def download(hub: HubServer, cache: Path, model: str = "org/model", **settings: Any) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, endpoint=hub.url, cache_dir=cache, **settings))


def fetch(hub: HubServer, path: str, **headers: str) -> Any:
    return urlopen(Request(f"{hub.url}/{path}", headers=headers))


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_hubs_client_downloads_files_in_memory_and_on_disk(hub, cache, tmp_path):
    for name, content in FILES.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content)
    on_disk = hub.add("org/disk", tmp_path / "model")
    assert on_disk.id == hub.revisions["org/model"]["main"].id
    for model in ("org/model", "org/disk"):
        assert read_tree(download(hub, cache, model)) == FILES
    assert hub.sent["org/disk/model.safetensors"] == len(WEIGHTS)
    assert sorted(hub.downloads) == sorted(f"org/{model}/{name}" for model in ("disk", "model") for name in FILES)
    assert hub.sent.total() == 2 * on_disk.size


def test_blobs_are_named_as_the_hubs_own(hub, cache):
    """Git's hash of a small file, SHA-256 of one in LFS."""
    blobs = {path.name for path in (download(hub, cache).parents[1] / "blobs").iterdir()}
    assert "9e26dfeeb6e641a33dae4961196235bdb965b21b" in blobs  # git hash-object of {}
    assert "fbbab289f7f94b25736c58be46a994c441fd02552cc6022352e3d86d2fab7c83" in blobs  # sha256 of WEIGHTS


def test_no_token_is_sent_to_the_host_of_large_files(hub, cache):
    hub.token = "hf_right"
    hub.private.add("org/model")
    download(hub, cache, token="hf_right")
    assert hub.tokens == {"hub": {"Bearer hf_right"}, "cdn": {None}}


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


def test_a_renamed_model_is_found_under_its_old_name(hub, cache):
    hub.renamed["old/name"] = "org/model"
    assert read_tree(download(hub, cache, "old/name")) == FILES


def test_a_branch_and_a_commit_are_revisions(hub, cache):
    commit = hub.add("org/model", {"config.json": b"[]"}, revision="refs/pr/1")
    for revision in ("refs/pr/1", commit.id):
        assert read_tree(download(hub, cache, revision=revision)) == {"config.json": b"[]"}


def test_an_interrupted_transfer_is_continued(hub, cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
    hub.faults.add(Fault("cut", after=600_000))
    assert read_tree(download(hub, cache)) == FILES
    assert hub.ranges == [600_000 // (1 << 16) * (1 << 16)]


def test_xet_is_announced_and_never_answers(hub):
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils._xet import refresh_xet_connection_info

    url = hf_hub_url("org/model", "model.safetensors", endpoint=hub.url)
    assert get_hf_file_metadata(url, endpoint=hub.url).xet_file_data is None
    hub.is_xet = True
    announced = get_hf_file_metadata(url, endpoint=hub.url).xet_file_data
    assert announced is not None
    assert refresh_xet_connection_info(file_data=announced, headers={}).endpoint == hub.xet.url
    (entry,) = HfApi(endpoint=hub.url).get_paths_info("org/model", ["model.safetensors"])
    assert entry.xet_hash == announced.file_hash
    host, port = hub.xet.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=0.2) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(TimeoutError):
            client.recv(1)
