"""For a branch on disk, one request checks whether it has moved. Changed files are fetched."""

import logging
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from startup.files.download.download_process import start_download
from startup.files.download.obtain import begin_download, finish_download, resolve_model
from startup.files.model.file_plan import plan_files
from startup.files.model.model_request import ModelRequest
from tests.startup.files.download.conftest import COMMIT, MODEL, write_model, write_snapshot
from tests.startup.files.download.downloads import MODEL as LARGER_MODEL
from tests.startup.files.download.downloads import Downloads
from tests.support.hub import Fault, HubServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.thorough

MOVED = "b" * 40
TEMPLATE = {"chat_template.jinja": b"{{ messages }}"}
MODEL_REQUEST = ModelRequest(model="org/model")


@pytest.fixture
def on_disk(hub_server: HubServer, cache: Path) -> Path:
    """The snapshot of `org/model` on disk."""
    return write_snapshot(cache, "org/model")


def test_a_branch_that_has_not_moved_costs_one_request(hub_server, on_disk, caplog):
    caplog.set_level(logging.INFO)
    assert resolve_model(MODEL_REQUEST).path == on_disk
    assert [seen.path for seen in hub_server.requests] == ["/api/models/org/model/revision/main"]
    (line,) = caplog.messages
    assert line.startswith(f"org/model: main is still commit {COMMIT}, downloaded on 20")


def test_what_has_changed_is_downloaded_and_served(hub_server, cache, caplog):
    caplog.set_level(logging.INFO)
    resolve_model(MODEL_REQUEST)
    hub_server.reset()
    hub_server.add("org/model", MODEL | TEMPLATE, commit=MOVED)
    folder = resolve_model(MODEL_REQUEST).path
    assert (folder.name, (cache / "models--org--model/refs/main").read_text()) == (MOVED, MOVED)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == MODEL | TEMPLATE
    assert hub_server.downloads == ["org/model/chat_template.jinja"]
    assert any(
        line.startswith(f"org/model: main has moved to commit {MOVED}") and COMMIT in line for line in caplog.messages
    )
    hub_server.reset()
    assert resolve_model(MODEL_REQUEST).path == folder
    assert len(hub_server.requests) == 1


@pytest.mark.parametrize(
    "request_of_others",
    [
        ModelRequest(model="org/model", revision="v2"),
        ModelRequest(model="FOLDER", tokenizer="org/model"),
        ModelRequest(model="FOLDER", engine="vllm", adapters=("org/adapter",)),
    ],
    ids=["tag", "tokenizer", "adapter"],
)
def test_tags_tokenizers_and_adapters_move_too(request_of_others, hub_server, cache, tmp_path):
    folder = write_model(tmp_path / "folder")
    request = replace(request_of_others, model=request_of_others.model.replace("FOLDER", str(folder)))
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(8) + b"{}"}
    branches = (("model", MODEL, "v2"), ("model", MODEL, "main"), ("adapter", adapter, "main"))
    for name, files, branch in branches:
        hub_server.add(f"org/{name}", files, revision=branch, commit=COMMIT)
    resolve_model(request)
    hub_server.reset()
    resolve_model(request)
    assert len(hub_server.requests) == 1
    for name, files, branch in branches:
        hub_server.add(f"org/{name}", files | {"new.json": b"{}"}, revision=branch, commit=MOVED)
    resolve_model(request)
    (place,) = (place for place in plan_files(request).places if place.kind == "snapshot")
    assert place.folder.name == MOVED


@pytest.mark.parametrize("asked", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "commit", "folder"])
def test_nothing_is_asked_in_offline_mode_nor_for_a_commit_or_a_folder(asked, hub_server, on_disk, monkeypatch):
    hub_server.add("org/model", MODEL | TEMPLATE, commit=MOVED)
    monkeypatch.setenv(asked if asked.isupper() else "UNUSED", "1")
    request = ModelRequest(
        model=str(on_disk) if asked == "folder" else "org/model", revision=COMMIT if asked == "commit" else None
    )
    assert resolve_model(request).path == on_disk
    assert hub_server.requests == []


def test_without_an_answer_the_start_takes_what_is_on_disk(hub_server, on_disk, caplog):
    """The start uses the files on disk, even if the hub answers later."""
    hub_server.add("org/model", MODEL | TEMPLATE, commit=MOVED)
    hub_server.may_answer.clear()
    plan = plan_files(MODEL_REQUEST)
    with begin_download(plan, lambda _: None) as handle:
        wait_until(lambda: len(hub_server.requests) == 1)
        handle.stop_asking()
        assert finish_download(plan, handle).path == on_disk
    (line,) = caplog.messages
    assert line.startswith("the hub has not answered whether the branch has moved. Using the files on disk of org/")
    assert f"commit {COMMIT}, downloaded on 20" in line


def test_a_start_waits_for_a_branch_that_is_known_to_have_moved(hub_server, on_disk):
    hub_server.add("org/model", MODEL | TEMPLATE, commit=MOVED)
    hub_server.link.bytes_per_s = 100
    plan = plan_files(MODEL_REQUEST)
    with begin_download(plan, lambda _: None) as handle:
        wait_until(lambda: handle._has_moved)
        handle.stop_asking()
        assert finish_download(plan, handle).path.name == MOVED


@pytest.mark.parametrize(
    ("status", "code", "num_requests"),
    [(503, "", 1), (None, "", 0), (429, "", 1), (401, "RepoNotFound", 2), (403, "GatedRepo", 2)],
)
def test_a_hub_that_refuses_or_is_not_there_leaves_what_is_on_disk(
    status, code, num_requests, hub_server, on_disk, caplog, monkeypatch
):
    if status is None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    else:
        hub_server.faults.add(Fault("status", times=None, path="api/*", status=status, code=code))
    assert resolve_model(MODEL_REQUEST).path == on_disk
    assert len(hub_server.requests) == num_requests
    (line,) = caplog.messages
    assert status is not None or line.startswith("the hub at 127.0.0.1 cannot be reached (")
    assert f"Using the files on disk of org/model: commit {COMMIT}, downloaded on 20" in line


def test_a_file_that_cannot_be_had_leaves_what_is_on_disk(downloads, caplog):
    (folder,) = downloads.run().folders
    downloads.hub.add("org/model", LARGER_MODEL | TEMPLATE, commit=MOVED)
    downloads.hub.faults.add(Fault("status", times=None, path="*.jinja", status=403, code="GatedRepo"))
    report = downloads.run(cached=folder)
    assert (report.failure, report.folders) == (None, (folder,))
    assert f"Using the files on disk of org/model: commit {folder.name}" in caplog.text


def ask(
    downloads: Downloads, folder: Path, *endpoints: str, token: str | None = None
) -> list[tuple[str | None, int | None]]:
    """Runs a helper. Returns tokens and statuses of its requests."""
    downloads.hub.reset()
    hubs = endpoints or (downloads.hub.url,)
    with start_download([downloads.download(cached=folder, token=token)], endpoints=hubs) as handle:
        assert handle.result() == (folder,)
    return [(seen.token, seen.status) for seen in downloads.hub.requests]


def test_a_mirror_is_asked_after_a_hub_that_is_not_there(downloads):
    (folder,) = downloads.run().folders
    assert ask(downloads, folder, "http://127.0.0.1:9", downloads.hub.url) == [(None, 200)]


def test_a_private_repository_is_asked_for_with_the_token(downloads, monkeypatch):
    downloads.hub.token = "hf_right"
    downloads.hub.private.add("org/model")
    (folder,) = downloads.run(token="hf_right").folders
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_right\n")
    assert ask(downloads, folder) == [("Bearer hf_right", 200)]


def test_a_token_does_not_follow_a_redirect(downloads):
    (folder,) = downloads.run().folders
    downloads.hub.add("org/new", LARGER_MODEL)
    downloads.hub.renamed["org/model"] = "org/new"
    assert ask(downloads, folder, token="hf_a") == [("Bearer hf_a", 307), (None, 200)]


def test_a_helper_that_dies_leaves_what_is_on_disk(hub_server, on_disk, caplog):
    hub_server.may_answer.clear()
    (download,) = plan_files(MODEL_REQUEST).downloads
    with start_download([download]) as handle:
        wait_until(lambda: len(hub_server.requests) == 1)
        handle._helper._process.kill()
        assert handle.result() == (on_disk,)
    assert "killed by signal 9. Using the files on disk of org/model" in caplog.text


def test_the_end_of_a_server_ends_the_question_silently(hub_server, on_disk, caplog):
    hub_server.may_answer.clear()
    (download,) = plan_files(MODEL_REQUEST).downloads
    with start_download([download]):
        wait_until(lambda: len(hub_server.requests) == 1)
    assert caplog.messages == []
    assert not [thread for thread in threading.enumerate() if thread.name == "download-progress"]
