"""The hub gets one request, only for files that are not on disk; a stand-in gives the real one's answers."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from startup.preflight.report import Finding, PreflightReport
from tests.hub.faults import Fault
from tests.hub.server import HubServer
from tests.waiting import wait_until

Preflight = Callable[..., PreflightReport]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """Two repositories, and an empty cache."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    hub_server.add("team/model", {"config.json": b"{}"})
    hub_server.add("team/words", {"tokenizer_config.json": b"{}"})
    return hub_server


def requests_to(hub: HubServer) -> list[tuple[str, str, str | None]]:
    return [(seen.method, seen.path, seen.token) for seen in hub.requests]


def hub_finding(report: PreflightReport) -> Finding:
    (finding,) = [f for f in report.findings if f.check == "hub"]
    return finding


def test_an_available_model_needs_one_request(hub: HubServer, preflight: Preflight) -> None:
    finding = hub_finding(preflight("team/model", hf_token="secret"))
    assert finding.severity == "info"
    assert requests_to(hub) == [("HEAD", "/team/model/resolve/main/config.json", "Bearer secret")]


def test_the_token_of_a_login_is_used(hub: HubServer, preflight: Preflight, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("kept\n")
    hub.add("team/model", {"config.json": b"{}"}, revision="v1/x")
    preflight("team/model", revision="v1/x")
    assert requests_to(hub) == [("HEAD", "/team/model/resolve/v1%2Fx/config.json", "Bearer kept")]


def test_a_tokenizer_is_requested_by_its_own_name(hub: HubServer, preflight: Preflight, model_path: Path) -> None:
    preflight(model_path, tokenizer="team/words")
    assert [seen.path for seen in hub.requests] == ["/team/words/resolve/main/tokenizer_config.json"]


def test_a_redirect_means_that_the_model_is_available_and_is_not_followed(hub: HubServer, preflight: Preflight) -> None:
    hub.renamed["team/model"] = "team/words"
    assert hub_finding(preflight("team/model", hf_token="secret")).severity == "info"
    assert [seen.status for seen in hub.requests] == [307]


@pytest.mark.parametrize(
    ("status", "code", "token", "expected"),
    [
        (401, "GatedRepo", None, "team/model is gated: ask for access at {url}/team/model, then give a token"),
        (403, "GatedRepo", "t", "team/model is gated: ask for access at {url}/team/model"),
        (
            401,
            "RepoNotFound",
            None,
            "{url}/team/model does not exist: correct the name; if it is private, give a token",
        ),
        (404, "RepoNotFound", "t", "does not exist: correct the name; if it is private, the token may not see it"),
        (401, "", "bad", "the hub does not accept the token: correct --hf-token or HF_TOKEN"),
        (404, "RevisionNotFound", None, "team/model has no revision 'v9': correct --revision"),
        (404, "EntryNotFound", None, "has no config.json, so it is not a model"),
    ],
)
def test_an_error_response_is_reported_with_the_fix(
    hub: HubServer, preflight: Preflight, status: int, code: str, token: str | None, expected: str
) -> None:
    hub.faults.add(Fault("status", status=status, code=code))
    finding = hub_finding(preflight("team/model", hf_token=token, revision="v9"))
    assert finding.severity == "error"
    assert expected.format(url=hub.url) in finding.message


def test_an_error_that_may_pass_is_a_warning(hub: HubServer, preflight: Preflight) -> None:
    hub.faults.add(Fault("status", status=503))
    finding = hub_finding(preflight("team/model"))
    assert finding.severity == "warning"
    assert "answers 503 for team/model" in finding.message
    assert "the download is tried anyway" in finding.message


def test_a_hub_with_mirrors_is_only_warned_about(
    hub: HubServer, preflight: Preflight, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}, https://mirror.example")
    finding = hub_finding(preflight("team/nothing"))
    assert finding.severity == "warning"
    assert f"{hub.url}/team/nothing does not exist" in finding.message


def test_a_slow_hub_is_a_warning_after_the_timeout(hub: HubServer, preflight: Preflight) -> None:
    hub.may_answer.clear()
    finding = hub_finding(preflight("team/model", hub_timeout_s=0.3))
    assert [seen.status for seen in hub.requests] == [None]
    assert finding.severity == "warning"
    assert "no answer within 0.3 s" in finding.message


def test_all_requests_to_the_hub_run_while_other_checks_run(
    hub: HubServer, preflight: Preflight, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub answers only after both requests have arrived and a later check runs."""
    hub.may_answer.clear()

    def check_shared_memory(_: Path) -> tuple[()]:
        wait_until(lambda: len(hub.requests) == 2)
        assert [seen.status for seen in hub.requests] == [None, None]
        hub.may_answer.set()
        return ()

    monkeypatch.setattr("startup.preflight.run.check_shared_memory", check_shared_memory)
    report = preflight("team/model", tokenizer="team/words")
    assert [f.severity for f in report.findings if f.check in ("hub", "shm")] == ["info", "info"]


def test_unreachable_hub_is_an_error_with_the_address(
    hub: HubServer, preflight: Preflight, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    finding = hub_finding(preflight("team/model"))
    assert finding.severity == "error"
    assert "the hub at http://127.0.0.1:9 cannot be reached: connection refused" in finding.message


def test_unreachable_hub_is_a_warning_for_the_default_model(
    hub: HubServer, preflight: Preflight, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub_finding(preflight(None)).severity == "warning"


def test_a_local_folder_needs_no_network(hub: HubServer, preflight: Preflight, model_path: Path) -> None:
    assert preflight(model_path).errors == ()
    assert hub.requests == []


def test_offline_mode_sends_no_request(hub: HubServer, preflight: Preflight, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (finding,) = preflight("team/model").errors
    assert "HF_HUB_OFFLINE forbids the download" in finding.message
    assert hub.requests == []


def test_a_full_disk_is_reported_with_the_remaining_bytes(
    hub: HubServer, preflight: Preflight, tmp_path: Path, folder
) -> None:
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


def test_request_imports_nothing_in_its_thread(hub: HubServer) -> None:
    script = """
import sys, threading
from startup.preflight.hub import HubCheck
from startup.model.location import ModelPlace
imported = []
def watch(event, arguments):
    if event == "import" and threading.current_thread() is not threading.main_thread():
        imported.append(arguments[0])
sys.addaudithook(watch)
check = HubCheck(ModelPlace("hub", "team/model"), token=None, timeout_s=60)
print([f.severity for f in check.findings()], imported)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.strip() == "['info'] []"
