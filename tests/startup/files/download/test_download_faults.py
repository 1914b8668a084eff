"""A download continues after faults of hub and network, and never keeps a wrong file."""

import errno
import json
import logging
import time
from pathlib import Path

import pytest

from tests.startup.files.download.downloads import MODEL, WEIGHTS
from tests.support.hub import Fault, HubServer

MIB = 1 << 20


def test_the_files_are_where_the_hubs_client_finds_them(downloads):
    from huggingface_hub import hf_hub_download, snapshot_download

    report = downloads.run()
    assert downloads.content(report) == MODEL
    theirs = snapshot_download("org/model", cache_dir=downloads.cache, local_files_only=True)
    assert [Path(theirs)] == list(report.folders)
    hf_hub_download("org/model", "config.json", cache_dir=downloads.cache, revision=report.folders[0].name)
    assert len(downloads.hub.downloads) == len(MODEL)
    assert sorted(path.name for path in (downloads.cache / "models--org--model").iterdir()) == [
        "blobs",
        "refs",
        "snapshots",
    ]


def test_nothing_is_fetched_twice(downloads):
    assert downloads.run().fetched_bytes == sum(map(len, MODEL.values()))
    second = downloads.run()
    assert second.fetched_bytes == 0
    assert downloads.content(second) == MODEL
    assert len(downloads.hub.downloads) == len(MODEL)


def test_a_connection_that_stalls_is_replaced_where_it_ended(downloads):
    downloads.hub.faults.add(Fault("stall", path="*.safetensors", after=600_000))
    begin_s = time.monotonic()
    report = downloads.run(stall_s=5.0)
    assert downloads.content(report) == MODEL
    assert time.monotonic() - begin_s >= 5.0
    assert downloads.hub.ranges == [600_000]
    assert report.fetched_bytes == sum(map(len, MODEL.values()))


def test_a_connection_that_is_cut_is_replaced_where_it_ended(downloads):
    for after in (1000, 70_000):
        downloads.hub.faults.add(Fault("cut", path="*.safetensors", after=after))
    assert downloads.content(downloads.run()) == MODEL
    assert downloads.hub.ranges == [1000, 71_000]


@pytest.mark.parametrize("path", ["api/*", "*/resolve/*"], ids=["listing", "files"])
def test_a_hub_that_answers_504_five_times_is_asked_again(downloads, path):
    downloads.hub.faults.add(Fault("status", status=504, times=5, path=path))
    assert downloads.content(downloads.run()) == MODEL
    assert [seen.status for seen in downloads.hub.requests].count(504) == 5


@pytest.mark.parametrize("path", ["api/*", "*/resolve/*.safetensors"], ids=["listing", "files"])
def test_retry_after_is_obeyed(downloads, path):
    downloads.hub.faults.add(Fault("status", status=429, retry_after=1, path=path))
    begin_s = time.monotonic()
    assert downloads.content(downloads.run()) == MODEL
    assert time.monotonic() - begin_s >= 1.0
    assert "the hub answers 429, waiting 1 s" in downloads.notes


def test_a_mirror_that_lists_no_hashes_is_asked_for_each_until_it_answers(downloads):
    downloads.hub.lists_contents = False
    downloads.hub.faults.add(Fault("status", method="HEAD", path="*/resolve/*", status=429, times=2, retry_after=0))
    assert downloads.content(downloads.run()) == MODEL


def test_a_file_system_without_links_gets_every_file_once(downloads, monkeypatch):
    """Two files are equal, as the tokenizers in Mistral's repositories are."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    files = {**MODEL, "copy.json": MODEL["tokenizer.json"]}
    downloads.hub.add("org/twins", files)
    assert downloads.content(downloads.run("org/twins")) == files
    num_fetched = len(downloads.hub.downloads)
    second = downloads.run("org/twins")
    assert (second.fetched_bytes, len(downloads.hub.downloads)) == (0, num_fetched)
    assert downloads.content(second) == files


def test_a_hub_that_always_answers_503_is_an_error(downloads):
    downloads.hub.faults.add(Fault("status", status=503, times=None, path="*/resolve/*.safetensors"))
    report = downloads.run()
    assert report.failure == "unreachable"
    expected = "model.safetensors of org/model could not be downloaded: the hub answers 503, 8 times in a row"
    assert expected in report.reason
    assert "\n" not in report.reason


@pytest.mark.parametrize(
    "fault",
    [
        Fault("wrong", path="*/model.safetensors", after=3),
        Fault("wrong", path="*/config.json", after=3),
        Fault("short", path="*.safetensors", after=500_000),
    ],
    ids=["SHA-256", "git's hash of a small file", "shorter than listed"],
)
def test_wrong_content_is_fetched_again(downloads, fault):
    downloads.hub.faults.add(fault)
    report = downloads.run()
    assert downloads.content(report) == MODEL
    (report.folders[0] / "model.safetensors").resolve().write_bytes(b"")  # as after a power failure
    assert downloads.content(downloads.run()) == MODEL


def test_content_that_is_always_wrong_is_an_error_and_not_kept(downloads):
    downloads.hub.faults.add(Fault("wrong", path="*.safetensors", after=3, times=None))
    report = downloads.run()
    assert report.failure == "wrong"
    assert "model.safetensors of org/model at http://127.0.0.1" in report.reason
    assert "has the hash" in report.reason
    folder = downloads.cache / "models--org--model"
    assert not any(path.stat().st_size >= len(WEIGHTS) for path in (folder / "blobs").iterdir())
    assert not list((folder / "snapshots").iterdir())
    downloads.hub.faults.clear()
    assert downloads.content(downloads.run()) == MODEL


@pytest.mark.parametrize("is_link", [False, True])
def test_a_part_of_other_content_does_not_spoil_the_file_and_no_link_is_followed(downloads, tmp_path, is_link):
    blobs = downloads.cache / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    (tmp_path / "precious").write_bytes(b"mine")
    oid = downloads.hub.revisions["org/model"]["main"].files["model.safetensors"].sha256
    part = blobs / f"{oid}.vllm-cli.incomplete"
    part.symlink_to(tmp_path / "precious") if is_link else part.write_bytes(b"other" * 1000)
    assert downloads.content(downloads.run()) == MODEL
    assert (tmp_path / "precious").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["../outside.json", "/etc/outside.json", "a/../../b.json", "a\\b.json", "a//b.json"])
def test_names_that_leave_the_folder_are_refused(name):
    from startup.files.download.repository import is_safe_name

    assert not is_safe_name(name)
    assert is_safe_name("1_Pooling/config.json")


def test_a_mirror_with_dangerous_names_and_commits_is_refused(downloads):
    downloads.hub.add("org/model", {**MODEL, "../../outside.json": b"{}"})
    assert downloads.content(downloads.run()) == MODEL
    assert not list(downloads.cache.rglob("outside.json"))
    downloads.hub.add("org/other", MODEL, commit="../../../outside")
    report = downloads.run("org/other")
    assert report.failure == "wrong"
    assert "is not a commit" in report.reason


def test_the_next_mirror_is_tried(downloads):
    with HubServer().serving() as mirror:
        mirror.add("org/model", MODEL)
        downloads.hub.faults.add(Fault("status", status=502, times=None, path="*/resolve/*"))
        report = downloads.run(endpoints=(downloads.hub.url, mirror.url))
        assert downloads.content(report) == MODEL
        assert sorted(mirror.downloads) == sorted(f"org/model/{name}" for name in MODEL)


def test_a_mirror_that_does_not_have_the_model_is_skipped(downloads):
    with HubServer().serving() as mirror:
        report = downloads.run(endpoints=("http://127.0.0.1:1", mirror.url, downloads.hub.url))
        assert downloads.content(report) == MODEL
        refused = downloads.run("org/nothing", endpoints=("http://127.0.0.1:1", mirror.url))
        assert refused.failure == "refused"
        assert f"{mirror.url}/org/nothing does not exist" in refused.reason


def test_a_connection_that_is_refused_is_told_at_once(downloads):
    report = downloads.run(endpoints=("http://127.0.0.1:1",))
    assert report.failure == "unreachable"
    assert "org/model is not cached, and the hub at http://127.0.0.1:1 cannot be reached" in report.reason


@pytest.mark.parametrize(
    ("change", "token", "expected"),
    [
        ({"gated": {"org/model"}}, None, "org/model is gated: ask for access at {0}/org/model, then give a token"),
        ({"gated": {"org/model"}}, "hf_wrong", "org/model is gated: ask for access at {0}/org/model"),
        ({"private": {"org/model"}}, None, "{0}/org/model does not exist: correct the name. If it is private, give a"),
        ({"revisions": {"org/model": {}}}, None, "org/model has no revision 'main': correct --revision"),
        ({"token": "hf_other"}, "hf_wrong", "the hub does not accept the token: correct --hf-token or HF_TOKEN"),
    ],
    ids=["gated", "gated-token", "private", "revision", "token"],
)
def test_a_refusal_is_one_line_at_once(downloads, change, token, expected):
    for name, value in change.items():
        setattr(downloads.hub, name, value)
    report = downloads.run(token=token)
    assert report.failure == "refused"
    assert report.reason.startswith(expected.format(downloads.hub.url))
    assert "\n" not in report.reason
    assert not downloads.notes, "no request is repeated"


def test_a_renamed_model_is_downloaded_with_a_warning(downloads, caplog):
    downloads.hub.renamed["old/name"] = "org/model"
    with caplog.at_level(logging.WARNING, logger="startup"):
        assert downloads.content(downloads.run("old/name")) == MODEL
    assert "old/name is named org/model now" in caplog.text


def test_the_token_goes_to_the_hub_only(downloads):
    """Large files of the fake hub are on another host, as on the real hub."""
    downloads.hub.token = "hf_right"
    downloads.hub.private.add("org/model")
    assert downloads.content(downloads.run(token="hf_right")) == MODEL
    assert downloads.hub.tokens == {"hub": {"Bearer hf_right"}, "cdn": {None}}


def test_a_limit_of_time_ends_the_download(downloads):
    downloads.hub.link.bytes_per_s = 200_000
    report = downloads.run(timeout_s=1.0)
    assert report.failure == "timeout"
    assert "org/model is not complete after 1 s (--download-timeout). Received parts are kept" in report.reason
    downloads.hub.link.bytes_per_s = None
    assert downloads.run().fetched_bytes < sum(map(len, MODEL.values()))


def test_only_the_shards_of_the_index_are_fetched(downloads):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files = {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00002.safetensors": b"1" * MIB,
        "model-00002-of-00002.safetensors": b"2" * MIB,
        "consolidated.safetensors": b"3" * MIB,
        "onnx/model.onnx": b"x",
    }
    downloads.hub.add("org/model", files)
    content = downloads.content(downloads.run())
    assert sorted(content) == sorted(set(files) - {"consolidated.safetensors", "onnx/model.onnx"})


def test_an_incomplete_snapshot_is_completed_and_marked_until_then(downloads):
    from startup.files.model.model_place import unfinished_marker

    folder = downloads.run().folders[0]
    blob = (folder / "tokenizer.json").resolve()
    (folder / "tokenizer.json").unlink()
    blob.unlink()
    downloads.hub.faults.add(Fault("status", status=404, code="EntryNotFound", path="*/tokenizer.json"))
    assert downloads.run().failure == "refused"
    assert unfinished_marker(folder).exists()
    assert downloads.content(downloads.run()) == MODEL
    assert not unfinished_marker(folder).exists()


def test_progress_has_bytes_rate_and_time_left(downloads):
    downloads.hub.link.bytes_per_s = MIB
    downloads.run()
    texts = list(map(str, downloads.progress))
    assert any(" of 1.0 MiB, " in text and "/s, about " in text for text in texts), texts
