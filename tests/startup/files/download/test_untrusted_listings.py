"""What a hub lists or sends changes no file outside of the repository's folder, and is compared."""

import gzip
import json
import logging
import os
import resource
from pathlib import Path

import pytest

from base.machine.files import is_safe_name
from startup.files.download.messages import DownloadError
from startup.files.download.repository import CachedRepository, HubFile, keep_safe
from tests.startup.files.download.downloads import MODEL
from tests.support.properties import given, st

_ODD = ("", ".", "..", "a", "b.safetensors", "victim", "\n", "\x1b[2J", "a\\b", "x" * 300, "é", "\udc80")
_PARTS = st.sampled_from(_ODD)
_NAMES = st.lists(_PARTS, min_size=1, max_size=5).map("/".join) | st.text(max_size=20)
COMMIT = "0" * 40


_OUTSIDE = ["/etc/x.json", "../x", "a/../../x", "a//b", "a/", "", ".", "a\nb", "\x1b[2Jx", "a\\b", "\udc80"]


@pytest.mark.parametrize("name", [*_OUTSIDE, "x" * 256, "a/" * 600 + "b"])
def test_these_names_lead_elsewhere_or_are_no_names(name):
    assert not is_safe_name(name)


@given(_NAMES)
def test_a_safe_name_is_a_file_below_its_folder(name):
    if is_safe_name(name):
        assert Path(os.path.normpath(f"/folder/{name}")).is_relative_to("/folder/")
        assert os.path.normpath(f"/folder/{name}") == f"/folder/{name}"


@given(st.lists(_NAMES, max_size=6))
def test_no_listed_file_is_also_a_folder(names):
    kept = keep_safe("org/model", {name: HubFile(name, 1, "") for name in names})
    assert all(map(is_safe_name, kept))
    assert not any(other.startswith(f"{name}/") for name in kept for other in kept)


def test_a_listing_that_names_files_elsewhere_deletes_none(downloads, tmp_path, caplog):
    """Names of the index are wanted files. A file of another size was once taken for a damaged one."""
    victim = tmp_path / "victim.safetensors"
    victim.write_bytes(b"mine")
    index = json.dumps({"weight_map": {"a": str(victim), "b": "../../../../victim.safetensors"}}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index}
    outside = (str(victim), "../../../../victim.safetensors")
    downloads.hub.add("org/hostile", files | dict.fromkeys(outside, b"weights of another"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            downloads.run("org/hostile")
    assert {path: path.read_bytes() for path in before} == before
    assert "org/hostile lists 2 files with names that no file in a folder can have" in caplog.text


_LARGE = bytes(1 << 26)
_ENDLESS = {"Content-Length": "", "Connection": "close"}


@pytest.mark.parametrize(
    ("headers", "body", "told"),
    [
        ({"ETag": '"../../../../victim.new"'}, None, "which cannot be the name of its content"),
        ({"ETag": '"FOLDER/victim.new"'}, None, "which cannot be the name of its content"),
        ({"ETag": '".."'}, None, "which cannot be the name of its content"),
        ({"X-Repo-Commit": "1" * 40}, None, f"config.json is of the commit '{'1' * 40}' instead of"),
        ({"X-Repo-Commit": "../../../../victim"}, None, "config.json is of the commit '../../../../victim' instead of"),
        ({"Content-Length": "200"}, None, "config.json has 200 bytes, but 2 are listed"),
        (_ENDLESS, _LARGE, "more than the 2 bytes of the file arrive"),
        (_ENDLESS | {"Content-Encoding": "gzip"}, gzip.compress(_LARGE), "more than the 2 bytes of the file arrive"),
        ({"Content-Length": "", "Transfer-Encoding": "chunked"}, b"no chunk\r\n", "cannot be reached"),
        ({"X-Other": "x" * 1_000_000}, None, "cannot be reached"),
    ],
    ids=[
        "hash above",
        "absolute hash",
        "hash of a folder",
        "other commit",
        "commit above",
        "other size",
        "endless",
        "bomb of gzip",
        "no chunk",
        "large header",
    ],
)
def test_an_answer_with_a_file_changes_nothing_else_and_needs_no_room(
    headers, body, told, downloads, tmp_path, monkeypatch
):
    monkeypatch.setattr("startup.files.download.hub_client._NUM_ROUNDS", 1)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's own attempts
    (tmp_path / "victim").write_bytes(b"mine")
    downloads.hub.add("org/hostile", {"config.json": b"{}"})
    downloads.hub.body = body
    downloads.hub.sends = {name: value.replace("FOLDER", str(tmp_path)) for name, value in headers.items()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 22, hard))
    try:
        report = downloads.run("org/hostile")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert report.failure is not None
    assert told in report.reason
    assert "\n" not in report.reason
    assert [path.name for path in tmp_path.rglob("victim*")] == ["victim"]
    assert {path.name for path in downloads.cache.rglob("*") if path.stat().st_size > 1000 and path.is_file()} == set()
    assert not [*downloads.cache.rglob("snapshots/*/config.json")]


def test_a_path_is_checked_once_more_where_it_is_made(tmp_path):
    repository = CachedRepository(tmp_path, "org/model")
    with pytest.raises(DownloadError, match="is no name of a file"):
        repository.file(COMMIT, "../../x")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"], ids=["SHA-256", "git's SHA-1"])
@pytest.mark.parametrize("is_killed", [False, True], ids=["at once", "after a killed start"])
def test_other_bytes_of_the_same_size_are_asked_for_again_and_never_kept(downloads, name, is_killed, monkeypatch):
    monkeypatch.setattr("startup.files.download.hub_client._NUM_ROUNDS", 2)
    files = downloads.hub.find("org/model", "main").files
    sound = files[name]
    files[name] = sound._replace(content=sound.content[:-1] + b"\0")
    report = downloads.run()
    assert report.failure is not None
    assert f"has sent {name} of org/model with another content than it lists" in report.reason
    [snapshot] = (downloads.cache / "models--org--model" / "snapshots").iterdir()
    assert not (snapshot / name).exists()
    files[name] = sound
    if is_killed:  # between the last byte and the check
        (snapshot / name).write_bytes(sound.content[:-1] + b"\0")
    assert downloads.content(downloads.run()) == MODEL
