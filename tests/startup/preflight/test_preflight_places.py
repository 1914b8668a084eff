"""A model is located as a folder, a snapshot, a download or nowhere; only a download needs the network."""

import os
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile

import pytest

from server.config import ModelFiles
from startup.config import StartupConfig
from startup.download.obtain import resolve_model
from startup.model.file_plan import FilePlan, plan_files
from startup.model.request import ModelRequest
from startup.preflight.report import PreflightReport

Preflight = Callable[..., PreflightReport]
MakeConfig = Callable[..., StartupConfig]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Snapshot:
    """A cached model as stored by the hub's client: links to blobs."""

    def __init__(self, cache: Path, files: Path) -> None:
        self.repository = cache / "models--team--model"
        self.folder = self.repository / "snapshots" / COMMIT
        self.blobs = self.repository / "blobs"
        self.folder.mkdir(parents=True)
        self.blobs.mkdir()
        (self.repository / "refs").mkdir()
        (self.repository / "refs" / "main").write_text(COMMIT)
        for path in files.iterdir():
            copyfile(path, self.blobs / f"blob-{path.name}")
            (self.folder / path.name).symlink_to(Path(os.pardir) / os.pardir / "blobs" / f"blob-{path.name}")


@pytest.fixture
def snapshot(tmp_path: Path, folder, monkeypatch: pytest.MonkeyPatch) -> Snapshot:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return Snapshot(tmp_path / "hub", folder.path)


def plan_of(config: StartupConfig) -> FilePlan:
    return plan_files(ModelRequest.of_start(config))


def test_a_local_folder_needs_no_download(model_path, make_config):
    assert plan_of(make_config(model_path)).files == ModelFiles(model_path, model_path)


def test_a_complete_snapshot_needs_no_download_and_has_no_findings(snapshot, make_config, preflight):
    config = make_config("team/model")
    assert plan_of(config).files == ModelFiles(snapshot.folder, snapshot.folder)
    assert resolve_model(ModelRequest.of_start(config)).path == snapshot.folder
    assert preflight("team/model").findings == ()


def test_a_snapshot_without_a_shard_needs_a_download(snapshot, make_config):
    (snapshot.folder / "model-00002-of-00003.safetensors").unlink()
    assert plan_of(make_config("team/model")).files is None


def test_a_snapshot_with_a_dangling_link_needs_a_download(snapshot, make_config, preflight):
    (snapshot.blobs / "blob-model-00002-of-00003.safetensors").unlink()
    (snapshot.blobs / "abc.incomplete").write_bytes(b"x" * 2048)
    assert plan_of(make_config("team/model")).files is None
    messages = [f.message for f in preflight("team/model").findings if f.check == "download"]
    assert "lacks the content of model-00002-of-00003.safetensors: they are downloaded now" in messages[0]
    assert "1 unfinished files (2.0 KiB) of a download that was killed" in messages[1]


def test_a_local_model_with_a_tokenizer_of_the_hub_needs_a_download(model_path, make_config):
    assert plan_of(make_config(model_path, tokenizer="team/words")).files is None


def test_a_broken_file_of_an_incomplete_snapshot_is_an_error(snapshot, preflight):
    (snapshot.folder / "model-00002-of-00003.safetensors").unlink()
    (snapshot.blobs / "blob-model-00001-of-00003.safetensors").write_bytes(b"cut")
    assert [f.check for f in preflight("team/model").errors] == ["weights"]


def test_an_incomplete_snapshot_is_an_error_in_offline_mode(snapshot, preflight, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (snapshot.folder / "model-00002-of-00003.safetensors").unlink()
    (finding,) = [f for f in preflight("team/model").errors if f.check == "model"]
    assert "is only in part in" in finding.message


def test_a_leftover_of_a_completed_download_is_information(snapshot, preflight):
    (snapshot.blobs / "abc.incomplete").write_bytes(b"x")
    (finding,) = preflight("team/model").findings
    assert (finding.severity, finding.check) == ("info", "download")


def test_a_misspelt_folder_is_reported_with_a_suggestion(tmp_path, preflight):
    (tmp_path / "Qwen3-0.6B").mkdir()
    (finding,) = preflight(tmp_path / "Qwen3-0.6b").errors
    assert "is neither a folder nor a name on the Hugging Face hub (did you mean 'Qwen3-0.6B'?)" in finding.message


def test_a_file_instead_of_a_folder_is_an_error(model_path, preflight):
    (finding,) = preflight(model_path / "model.safetensors").errors
    assert "is a file: give the folder" in finding.message


def test_a_model_and_a_tokenizer_in_two_folders_are_both_checked(folder, preflight, tmp_path):
    folder.shards[0].unlink()
    words = tmp_path / "words"
    words.mkdir()
    report = preflight(folder.path, tokenizer=str(words))
    assert {f.check for f in report.errors} >= {"shards", "tokenizer"}
