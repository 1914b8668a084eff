"""Only a check without a start asks the hub about a download, as the download would; a stand-in answers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import constants

from startup.preflight.report import Finding, PreflightReport
from tests.hub.faults import Fault
from tests.hub.server import HubServer

Preflight = Callable[..., PreflightReport]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A repository, and an empty cache."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read from the environment when first imported
    hub_server.add("team/model", {"config.json": b"{}"})
    return hub_server


@pytest.fixture
def check(preflight: Preflight) -> Preflight:
    """A check without a start."""
    return partial(preflight, asks_hub=True)


def hub_finding(report: PreflightReport) -> Finding:
    (finding,) = [f for f in report.findings if f.check == "hub"]
    return finding


def test_a_start_leaves_the_requests_to_the_download(hub, preflight):
    preflight("team/nothing")
    assert hub.requests == []


def test_an_available_model_is_told(hub, check):
    finding = hub_finding(check("team/model", hf_token="secret"))
    assert (finding.severity, finding.message) == ("info", f"team/model is to be downloaded from {hub.url}")
    assert hub.tokens["hub"] == {"Bearer secret"}


@pytest.mark.parametrize(
    ("fault", "token", "expected"),
    [
        (Fault("status", status=403, code="GatedRepo", path="*/resolve/*"), "t", "team/model is gated: ask for access"),
        (Fault("status", status=401, code="RepoNotFound"), None, "{url}/team/model does not exist: correct the name"),
        (Fault("status", status=404, code="RevisionNotFound"), None, "team/model has no revision 'main'"),
    ],
    ids=["gated", "unknown", "revision"],
)
def test_a_refusal_is_an_error_with_the_fix(hub, check, fault, token, expected):
    hub.faults.add(fault)
    finding = hub_finding(check("team/model", hf_token=token))
    assert finding.severity == "error"
    assert expected.format(url=hub.url) in finding.message


def test_an_error_that_may_pass_is_a_warning(hub, check):
    hub.faults.add(Fault("status", status=503))
    finding = hub_finding(check("team/model"))
    assert finding.severity == "warning"
    assert "team/model is to be downloaded: the hub answers 503" in finding.message


@pytest.mark.parametrize(("model", "severity"), [("team/model", "error"), (None, "warning")], ids=["named", "default"])
def test_an_unreachable_hub_is_an_error_unless_the_model_is_available_elsewhere(
    check, monkeypatch, hub, model, severity
):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    finding = hub_finding(check(model))
    assert finding.severity == severity
    assert "the hub at http://127.0.0.1:9 cannot be reached" in finding.message


def test_a_local_folder_needs_no_network(hub, check, model_path):
    assert check(model_path).errors == ()
    assert hub.requests == []


def test_offline_mode_sends_no_request(hub, check, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (finding,) = check("team/model").errors
    assert "HF_HUB_OFFLINE forbids the download" in finding.message
    assert hub.requests == []


def test_a_full_disk_is_reported_with_the_remaining_bytes(hub, preflight, tmp_path, folder):
    repository = tmp_path / "hf" / "hub" / "models--team--model"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    index = folder.index.read_text().replace("1728", str(1 << 60))
    (snapshot / folder.index.name).write_text(index)
    (finding,) = [f for f in preflight("team/model").errors if f.check == "disk"]
    assert "1048576.0 TiB are needed" in finding.message
    assert "--download-dir" in finding.message
