"""No answer of a hub or mirror makes a file outside of the repository's folder, or takes much memory.

`LIES` has one row for each thing that a hub can say in an answer: status, headers, the fields of a listing.
"""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from startup.files.download.hub_client import HubClient
from startup.files.download.messages import DownloadError
from startup.files.model.model_place import find_snapshot
from tests.support.hub import Lie, SeenRequest
from tests.support.marks import thorough_but_for

_NAMES = ["FOLDER/victim", "../../../../victim", "..", "", "a/b", "x" * 300, "a\x1bb"]
_NOT_FOUND = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
_ERRORS: list[tuple[int, dict[str, str]]] = [
    (404, _NOT_FOUND),
    (404, {"X-Error-Code": "RevisionNotFound"}),
    (404, {}),
    (403, {"X-Error-Code": "GatedRepo"}),
    (401, {}),
    (416, {}),
    (799, _NOT_FOUND),
    (302, _NOT_FOUND),
    (302, {"Location": "/elsewhere"}),
]
_HEADERS = ["X-Repo-Commit", "ETag", "X-Linked-ETag", "Location", "X-Xet-Hash", "X-Linked-Size", "Content-Length"]
COMMIT = "c" * 40


def files_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mode for path in folder.rglob("*")}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr("startup.files.download.hub_client._NUM_ROUNDS", 1)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's own attempts


def run_with(downloads, tmp_path: Path, lies) -> str:
    """Downloads from a hub that lies. Checks that nothing but the repository's folder has changed."""
    hub, cache = downloads.hub, downloads.cache
    hub.add("org/hostile", {"config.json": b"{}", "model.safetensors": b"weights"}, commit=COMMIT)
    hub.lies = lies
    before = files_of(tmp_path)
    report = downloads.run("org/hostile")
    own = f"{cache.relative_to(tmp_path)}/"
    allowed = (f"{own}models--org--hostile", f"{own}.locks", f"{own}CACHEDIR.TAG", own.rstrip("/"))
    new = {name for name in files_of(tmp_path) if name not in before and not name.startswith(allowed)}
    assert new == set()
    repository = cache / "models--org--hostile"
    kept = {path.name for path in (repository / "snapshots").glob("*")} if repository.exists() else set()
    assert kept <= {COMMIT}
    assert not [*(repository / "refs").glob(COMMIT)]
    assert not [path for path in (repository / ".no_exist").rglob("*") if path.is_file()]
    return report.reason


@pytest.mark.parametrize("name", thorough_but_for(_NAMES, *_NAMES[:2]))
@pytest.mark.parametrize(
    ("status", "headers"), _ERRORS, ids=[f"{status}-{index}" for index, (status, _) in enumerate(_ERRORS)]
)
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_an_error_makes_no_file(method, status, headers, name, downloads, tmp_path):
    commit = name.replace("FOLDER", str(tmp_path)).replace("\x1b", "\x7f")

    def lie(seen: SeenRequest) -> Lie | None:
        is_file = seen.method == method and "/resolve/" in seen.path
        return Lie(status, headers | {"X-Repo-Commit": commit}) if is_file else None

    run_with(downloads, tmp_path, lie)


@pytest.mark.parametrize("name", thorough_but_for([*_NAMES, "-1", "1e9", "9" * 400], *_NAMES[:2]))
@pytest.mark.parametrize("header", _HEADERS)
def test_a_header_makes_no_file_elsewhere(header, name, downloads, tmp_path):
    value = name.replace("FOLDER", str(tmp_path)).replace("\x1b", "\x7f")
    sound = {"X-Repo-Commit": COMMIT, "ETag": '"abc"', "Content-Length": "2", "X-Xet-Refresh-Route": downloads.hub.url}

    def lie(seen: SeenRequest) -> Lie | None:
        is_file = seen.method == "HEAD" and seen.path.endswith("config.json")
        return Lie(200, sound | {header: value}) if is_file else None

    run_with(downloads, tmp_path, lie)


@pytest.mark.parametrize(
    "change",
    [
        {"sha": "../../../../victim"},
        {"sha": "FOLDER/victim"},
        {"sha": None},
        {"sha": [COMMIT]},
        {"id": "org/\x1b[2J\nhostile"},
        {"siblings": [{"rfilename": "config.json", "size": -1, "blobId": "../../../victim"}]},
        {"siblings": [{"rfilename": "config.json", "size": "2", "blobId": "a" * 5000}]},
        {"siblings": [{"rfilename": "config.json", "size": 1e300, "blobId": ["x"]}]},
        {"siblings": [{"rfilename": "FOLDER/victim", "size": 2, "blobId": "x"}]},
        {"siblings": [{"rfilename": ["config.json"], "size": 2, "blobId": "x"}]},
        {"siblings": [{"rfilename": "config.json"}, {"rfilename": "config.json/x"}]},
        {"siblings": {"a": 1}},
        {"siblings": [3]},
        {"siblings": "config.json"},
    ],
    ids=lambda change: json.dumps(change)[:60],
)
def test_a_listing_makes_no_file_elsewhere(change, downloads, tmp_path, caplog):
    listing = {"id": "org/hostile", "sha": COMMIT, "tags": [], "private": False, "gated": False, "siblings": []}
    body = json.dumps(listing | change).replace("FOLDER", str(tmp_path)).encode()
    reason = run_with(downloads, tmp_path, lambda seen: Lie(200, {}, body) if "/api/" in seen.path else None)
    assert (reason + caplog.text.rstrip("\n").replace("\n", "")).isprintable()


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A listing of 192 MiB, in 200 KB."""
    return gzip.compress(b'{"a": "' + bytes(192 << 20) + b'"}', 1)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "gzip, gzip", "br", "zstd"])
@pytest.mark.parametrize("status", [200, 302, 404])
def test_a_long_listing_takes_little_memory(coding, status, bomb, downloads):
    headers = {"Content-Encoding": coding, "Location": "/api/models/other"}
    downloads.hub.lies = lambda _: Lie(status, headers, bomb)
    client = HubClient(token=None)
    tracemalloc.start()
    try:
        with pytest.raises(DownloadError):
            client.list_files("org/hostile", None, downloads.hub.url)
        assert tracemalloc.get_traced_memory()[1] < 128 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text", ["/etc", "../../elsewhere", "..", "", ".", "a/../..", "\0", "x" * 5000, "é", "\x1b[2J"]
)
@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_record_of_the_cache_leads_nowhere_else(text, revision, tmp_path):
    repository = tmp_path / "models--org--model"
    for folder in ("refs", f"snapshots/{COMMIT}"):
        (repository / folder).mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (repository / "refs" / revision).write_text(text, "utf-8")
    found = find_snapshot("org/model", revision=revision, cache_dir=tmp_path)
    assert found == (repository / "snapshots" / COMMIT if revision == COMMIT else None)


def test_a_revision_is_a_name_in_the_cache(tmp_path):
    repository = tmp_path / "models--org--model"
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "refs").mkdir()
    (tmp_path / "elsewhere").write_text(COMMIT)
    for revision in ("../../elsewhere", str(tmp_path / "elsewhere"), f"../snapshots/{COMMIT}"):
        assert find_snapshot("org/model", revision=revision, cache_dir=tmp_path) is None
