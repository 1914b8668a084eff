"""A model is in a folder, a snapshot, a download or nowhere. `preflight` asks the hub, a start does not."""

import os
from functools import partial
from pathlib import Path
from shutil import copyfile

import pytest
from huggingface_hub import constants

from server.terms.config import ModelFiles
from startup.files.download.obtain import resolve_model
from startup.files.model.file_plan import FilePlan, plan_files
from startup.files.model.model_request import ModelRequest
from startup.session.preflight.report import Finding, PreflightReport
from startup.settings.config import StartupConfig
from tests.support.hub import Fault, HubServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Snapshot:
    """A cached model as the hub's client stores it: links to blobs."""

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


def test_a_complete_snapshot_needs_no_download_and_has_no_findings(snapshot, make_config, preflight):
    config = make_config("team/model")
    assert plan_of(config).files == ModelFiles(snapshot.folder, snapshot.folder)
    assert resolve_model(ModelRequest.of_start(config)).path == snapshot.folder
    assert [f.check for f in preflight("team/model").findings] == ["memory"]


def test_a_snapshot_with_a_dangling_link_needs_a_download(snapshot, make_config, preflight):
    (snapshot.blobs / "blob-model-00002-of-00003.safetensors").unlink()
    assert plan_of(make_config("team/model")).files is None
    (message,) = (f.message for f in preflight("team/model").findings if f.check == "download")
    assert "lacks the content of model-00002-of-00003.safetensors: they are downloaded now" in message


def test_a_broken_file_of_an_incomplete_snapshot_is_an_error(snapshot, preflight):
    (snapshot.folder / "model-00002-of-00003.safetensors").unlink()
    (snapshot.blobs / "blob-model-00001-of-00003.safetensors").write_bytes(b"cut")
    assert [f.check for f in preflight("team/model").errors] == ["weights"]


def test_an_incomplete_snapshot_is_an_error_in_offline_mode(snapshot, preflight, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (snapshot.folder / "model-00002-of-00003.safetensors").unlink()
    (finding,) = [f for f in preflight("team/model", asks_hub=True).errors if f.check == "model"]
    assert f"is only in part in {snapshot.folder}, and HF_HUB_OFFLINE forbids the download" in finding.message


def test_a_misspelt_folder_is_reported_with_a_suggestion(tmp_path, preflight):
    (tmp_path / "Qwen3-0.6B").mkdir()
    (finding,) = preflight(tmp_path / "Qwen3-0.6b").errors
    assert "is neither a folder nor a name on the Hugging Face hub (did you mean 'Qwen3-0.6B'?)" in finding.message


@pytest.mark.parametrize("name", ["hf.co/team/model:Q4_K_M", "https://huggingface.co/team/model", "team/model@main"])
def test_a_name_of_another_tool_is_an_error_with_the_name_to_write(name, preflight):
    (finding,) = preflight(name).errors
    assert finding.message.startswith(f"MODEL {name} is written in the form of another tool: write team/model")


@pytest.mark.parametrize(
    ("others", "text"),
    [
        (
            ["pytorch_model.bin"],
            "weights are read from model-00001-of-00003.safetensors, model-00002-of-00003.safetensors and "
            "1 more, not from pytorch_model.bin",
        ),
        (["consolidated.safetensors"], "not from consolidated.safetensors"),
        (["m-Q4_K_M.gguf"], "not from m-Q4_K_M.gguf"),
        (["params.json"], "the configuration is read from config.json, not from params.json"),
        (["tekken.json"], "the tokenizer is read from tokenizer.json, not from tekken.json"),
        (["chat_template.jinja", "chat_template.json"], "is read from chat_template.jinja, not from "),
        (["training_args.bin", "adapter_model.bin", "notes.txt"], None),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_of_several_files_for_one_purpose_the_log_says_which_is_read(others, text, folder, preflight, caplog):
    for name in others:
        (folder.path / name).write_text('{"chat_template": "x"}' if name.endswith(".json") else "x")
    report = preflight(folder.path)
    (*_, message) = [f.message for f in report.findings if f.check == "choice"] or [""]
    assert (text or "") in message
    assert bool(message) == (text is not None)
    with caplog.at_level("INFO", "startup.session.preflight.report"):
        report.apply("warn")
    assert [record.message for record in caplog.records] == ([message] if text else [])


def test_a_model_and_a_tokenizer_in_two_folders_are_both_checked(folder, preflight, tmp_path):
    folder.shards[0].unlink()
    arguments = tmp_path / "arguments"
    arguments.mkdir()
    report = preflight(folder.path, tokenizer=str(arguments))
    assert {f.check for f in report.errors} >= {"shards", "tokenizer"}


@pytest.fixture
def hub(hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A hub with a repository, and an empty cache."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read from the environment when first imported
    hub_server.add("team/model", {"config.json": b"{}"})
    return hub_server


@pytest.fixture
def check(preflight):
    """Runs all checks as for a check without a start."""
    return partial(preflight, asks_hub=True)


def hub_finding(report: PreflightReport) -> Finding:
    (finding,) = [f for f in report.findings if f.check == "hub"]
    return finding


def test_a_start_leaves_the_requests_to_the_download_and_a_local_folder_needs_none(hub, preflight, check, model_path):
    preflight("team/nothing")
    assert check(model_path).errors == ()
    assert hub.requests == []


def test_an_available_model_is_reported(hub, check):
    finding = hub_finding(check("team/model", hf_token="secret"))
    assert finding.severity == "info"
    assert finding.message.startswith(
        f"team/model is to be downloaded from {hub.url}: 1 files with 2 bytes, of which the weights have 0 bytes; "
    )
    assert hub.tokens["hub"] == {"Bearer secret"}


@pytest.mark.parametrize(
    ("fault", "token", "severity", "expected"),
    [
        (Fault("status", status=403, code="GatedRepo", path="*/resolve/*"), "t", "error", "is gated: ask for access"),
        (Fault("status", status=401, code="RepoNotFound"), None, "error", "{url}/team/model does not exist: correct"),
        (Fault("status", status=404, code="RevisionNotFound"), None, "error", "team/model has no revision 'main'"),
        (Fault("status", status=503), None, "warning", "the hub at {url} answers 503 for team/model"),
    ],
    ids=["gated", "unknown", "revision", "may pass"],
)
def test_a_refusal_is_reported_with_the_fix(hub, check, fault, token, severity, expected):
    hub.faults.add(fault)
    finding = hub_finding(check("team/model", hf_token=token))
    assert (finding.severity, expected.format(url=hub.url) in finding.message) == (severity, True), finding


@pytest.mark.parametrize(("model", "severity"), [("team/model", "error"), (None, "warning")], ids=["named", "default"])
def test_an_unreachable_hub_is_an_error_unless_the_model_is_elsewhere(check, monkeypatch, hub, model, severity):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    finding = hub_finding(check(model))
    assert finding.severity == severity
    assert "the hub at http://127.0.0.1:9 cannot be reached" in finding.message
