"""A download continues after faults of hub and network, and never keeps an incomplete file."""

import json
import logging
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from startup.files.download.hub_client import HubClient, check_reachable
from startup.files.download.messages import DownloadError
from startup.files.model.file_plan import plan_files
from startup.files.model.model_place import unfinished_marker
from startup.files.model.model_request import ModelRequest
from tests.startup.files.download.downloads import MODEL
from tests.support.hub import Fault, HubServer, Lie

pytestmark = pytest.mark.thorough

MIB = 1 << 20


def test_the_files_are_where_the_hubs_client_finds_them_and_nothing_is_fetched_twice(downloads):
    from huggingface_hub import snapshot_download

    report = downloads.run()
    assert downloads.content(report) == MODEL
    assert report.fetched_bytes == sum(map(len, MODEL.values()))
    theirs = snapshot_download("org/model", cache_dir=downloads.cache, local_files_only=True)
    assert [Path(theirs)] == list(report.folders)
    downloads.hub.reset()
    second = downloads.run()
    assert (second.fetched_bytes, second.folders) == (0, report.folders)
    assert [seen.path for seen in downloads.hub.requests] == ["/api/models/org/model/revision/main"]


@pytest.mark.parametrize("kind", ["cut", "reset"])
def test_a_connection_that_ends_early_is_replaced(kind, downloads):
    """A reset may lose the part that has arrived, and then the file is fetched again."""
    files = {**MODEL, "model.safetensors": b"w" * 3 * MIB}
    downloads.hub.add("org/model", files)
    downloads.hub.faults.add(Fault(kind, path="*.safetensors", after=5 * MIB // 2))
    assert downloads.content(downloads.run()) == files
    assert downloads.hub.ranges == [2 * MIB] or (kind == "reset" and downloads.hub.ranges == [])
    assert downloads.hub.faults.take("GET", "org/model/model.safetensors", 3 * MIB) is None


def test_a_failed_fetch_is_repeated(downloads, monkeypatch):
    fetch, failures = HubClient.fetch, [DownloadError("unreachable", "no route to https://me:secret@host")]

    def fetch_after_failures(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        fetch(*arguments)

    monkeypatch.setattr(HubClient, "fetch", fetch_after_failures)
    assert downloads.content(downloads.run()) == MODEL
    assert all(note.startswith("no route to https://********@host, waiting ") for note in downloads.notes)


@pytest.mark.parametrize("path", ["api/*", "*/resolve/*.safetensors"])
def test_a_hub_that_answers_429_is_asked_again_after_the_time_that_it_demands(downloads, path):
    downloads.hub.faults.add(Fault("status", status=429, retry_after=1, path=path))
    assert downloads.content(downloads.run()) == MODEL
    assert [seen.status for seen in downloads.hub.requests].count(429) == 1
    assert "api" not in path or any(", waiting 1 s" in note for note in downloads.notes)


def test_a_file_that_is_shorter_than_listed_is_fetched_again(downloads):
    downloads.hub.faults.add(Fault("short", path="*.safetensors", after=500_000))
    report = downloads.run()
    assert downloads.content(report) == MODEL
    (report.folders[0] / "model.safetensors").resolve().write_bytes(b"")  # as after a power failure
    assert downloads.content(downloads.run()) == MODEL


def test_a_mirror_without_sizes_and_hashes_is_used(downloads):
    downloads.hub.lists_contents = False
    assert downloads.content(downloads.run()) == MODEL


def test_a_mirror_with_a_dangerous_commit_is_refused(downloads, monkeypatch):
    monkeypatch.setattr("startup.files.download.hub_client._NUM_ROUNDS", 1)
    downloads.hub.add("org/other", MODEL, commit="../../../outside")
    report = downloads.run("org/other")
    assert (report.failure, "is not a commit" in report.reason) == ("wrong", True)
    assert not list(downloads.cache.parent.rglob("outside*"))


def test_the_next_mirror_is_tried(downloads):
    with HubServer().serving() as mirror:
        mirror.add("org/model", MODEL)
        downloads.hub.faults.add(Fault("status", status=403, times=None, path="*/resolve/*"))
        assert downloads.content(downloads.run(endpoints=(downloads.hub.url, mirror.url))) == MODEL
        assert sorted(mirror.downloads) == sorted(f"org/model/{name}" for name in MODEL)
        refused = downloads.run("org/nothing", endpoints=("http://127.0.0.1:1", mirror.url))
        assert refused.failure == "refused"
        assert f"{mirror.url}/org/nothing does not exist" in refused.reason


_BUSY = Fault("status", status=503, times=None, path="api/*")
_NOWHERE = "http://me:secret@127.0.0.1:1"


_FAILURES = {
    "gated": (
        "refused",
        {"gated": {"org/model"}},
        {},
        "org/model is gated: ask for access at HUB/org/model, then give",
    ),
    "no access": ("refused", {"gated": {"org/model"}}, {"token": "x"}, "org/model is gated: ask for access at HUB/org"),
    "private": ("refused", {"private": {"org/model"}}, {}, "HUB/org/model does not exist: correct the name. If it is"),
    "no branch": ("refused", {"revisions": {"org/model": {}}}, {}, "org/model has no revision 'main': correct --revi"),
    "token": ("refused", {"token": "hf_y"}, {"token": "x"}, "the hub does not accept the token: correct --hf-token"),
    "busy": ("unreachable", {"fault": _BUSY}, {}, "the hub at HUB answers 503 for org/model: try again later, or"),
    "stall": (
        "unreachable",
        {"fault": Fault("stall", path="*.safetensors", after=600_000)},
        {"stall_s": 1.0},
        "no data of org/model has arrived for 1 s: try again",
    ),
    "no hub": ("unreachable", {}, {"endpoints": (_NOWHERE,)}, "the hub at http://********@127.0.0.1:1 cannot be"),
    "slow": ("timeout", {"bytes_per_s": 600_000}, {"timeout_s": 0.5}, "org/model is not complete after 0.5 s (--down"),
}


@pytest.mark.parametrize("name", _FAILURES)
def test_a_failure_is_one_line(name, downloads, monkeypatch):
    failure, change, settings, expected = _FAILURES[name]
    monkeypatch.setattr("startup.files.download.hub_client._NUM_ROUNDS", 2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 3)  # ends the abandoned request
    for setting, value in change.items():  # type: ignore[attr-defined]
        if setting == "fault":
            downloads.hub.faults.add(replace(value))
        else:
            setattr(downloads.hub.link if setting == "bytes_per_s" else downloads.hub, setting, value)
    report = downloads.run(**settings)
    assert report.failure == failure
    assert expected.replace("HUB", downloads.hub.url) in report.reason
    assert "\n" not in report.reason
    assert failure != "refused" or not downloads.notes, "no request is repeated"


_UNKNOWN = "https://nosuch.invalid"


@pytest.mark.parametrize(
    ("endpoints", "proxy", "is_reachable"),
    [
        ((_UNKNOWN,), None, False),
        ((_NOWHERE, _UNKNOWN), None, False),
        ((_UNKNOWN, "HUB"), None, True),
        ((_UNKNOWN,), "http://127.0.0.1:1", True),
        (("unix:/no/host",), None, True),
    ],
)
def test_only_hosts_that_nobody_can_reach_are_given_up_before_the_client_asks(
    endpoints, proxy, is_reachable, downloads, monkeypatch
):
    """Whatever is not certain is left to the hub's client, which also knows proxies."""
    if proxy is not None:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
    with nullcontext() if is_reachable else pytest.raises(DownloadError, match="cannot be reached"):
        check_reachable("org/model", [each.replace("HUB", downloads.hub.url) for each in endpoints])


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


def test_only_the_shards_of_the_index_are_fetched(downloads):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "sub/b.safetensors"}}
    files = {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00002.safetensors": b"1" * MIB,
        "sub/b.safetensors": b"2" * MIB,
        "other/c.safetensors": b"c",
        "consolidated.safetensors": b"3" * MIB,
        "onnx/model.onnx": b"x",
    }
    downloads.hub.add("org/model", files)
    content = downloads.content(downloads.run())
    assert sorted(content) == sorted(
        set(files) - {"consolidated.safetensors", "onnx/model.onnx", "other/c.safetensors"}
    )
    assert plan_files(ModelRequest(model="org/model")).model.kind == "snapshot"


def test_an_incomplete_snapshot_is_completed_and_marked_until_then(downloads):
    folder = downloads.run().folders[0]
    blob = (folder / "tokenizer.json").resolve()
    (folder / "tokenizer.json").unlink()
    blob.unlink()
    downloads.hub.faults.add(Fault("status", status=404, code="EntryNotFound", path="*/tokenizer.json"))
    assert downloads.run().failure == "refused"
    assert unfinished_marker(folder).exists()
    assert plan_files(ModelRequest(model="org/model")).model.kind == "hub"
    assert downloads.content(downloads.run()) == MODEL
    assert not unfinished_marker(folder).exists()


def test_progress_has_bytes_rate_and_time_left(downloads):
    downloads.hub.link.bytes_per_s = MIB
    downloads.run()
    texts = list(map(str, downloads.progress))
    assert any(" of 1.0 MiB, " in text and "/s, about " in text for text in texts), texts


_FORBIDDEN = {
    "in a header": ({"X-Error-Message": "The token lacks\tthe scope"}, b"", "The token lacks the scope"),
    "in a body": ({}, b'{"error": "blocked by policy 7"}', "blocked by policy 7"),
    "disabled": ({"X-Error-Message": "This repository is disabled."}, b"", "disabled.): nobody can download it"),
    "a mirror's page": ({}, b"<html>no</html>", "(403, without a reason)"),
    "a deep body": ({}, b'{"error": ' + b"[" * 9000, "(403, without a reason)"),
    "a body of another form": ({}, b'{"error": [1]}', "(403, without a reason)"),
}


@pytest.mark.parametrize("path", ["/api/", "/resolve/"])
@pytest.mark.parametrize("name", _FORBIDDEN)
def test_a_refusal_without_a_gate_has_the_hubs_own_reason(name, path, downloads):
    headers, body, told = _FORBIDDEN[name]
    downloads.hub.lies = lambda seen: (
        Lie(403, headers, b"" if seen.method == "HEAD" else body) if path in seen.path else None
    )
    report = downloads.run(token="hf_x")
    assert report.failure == "refused"
    assert "gated" not in report.reason
    assert (told if path == "/api/" or headers else "(403, without a reason)") in report.reason
    assert report.reason.isprintable()
