"""A start reports each step to probes, status page, service manager, log and files until it serves."""

import json
import logging
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from base.status_page.page import read_page
from startup import start_origin
from startup.errors import StartupError
from startup.files.prefetch.messages import PrefetchReport
from startup.port.listener import is_listening, listen
from startup.port.probe_http import Probe, parse_probe
from startup.port.responder import StartupResponder
from startup.reports.timeline.history import StartSubject
from startup.reports.timeline.timeline import PhaseTimeline
from startup.session.preflight.report import Finding, PreflightReport, error, warning
from startup.session.session import ListenAddress, StartSession
from startup.session.start_state import ProbeAnswers, StartState
from tests.startup.port.notify_socket import NotifySocket
from tests.support.http_client import ask
from tests.support.waiting import wait_until

_CURL = b"GET /health HTTP/1.1\r\nHost: a:8000\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n"
_KUBELET = b"GET /health HTTP/1.1\r\nHost: 10.0.0.1:8000\r\nUser-Agent: kube-probe/1.34\r\nConnection: close\r\n\r\n"


def _state(timeline: PhaseTimeline | None = None) -> StartState:
    subject = StartSubject(model="smol", start_method="spawn", packages=(), history_key=lambda versions: "key")
    return StartState(subject, timeline or PhaseTimeline.from_process_start())


@pytest.fixture
def starting() -> Iterator[Any]:
    """The state of a start in the phase load_weights, and a function that sends a GET to its responder."""
    timeline = PhaseTimeline.from_process_start()
    state = _state(timeline)
    with (
        listen(host="127.0.0.1", port=0, uds=None) as listener,
        StartupResponder(listener, ProbeAnswers(state)) as responder,
    ):
        timeline.on_change = lambda: responder.update(state.to_message())
        port = listener.getsockname()[1]

        def get(path: str) -> Any:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60)

        with timeline.span("load_weights"):
            yield state, get


def test_the_page_is_the_same_as_that_of_the_http_server(starting):
    _, get = starting
    with get("/") as answer:
        assert answer.read() == read_page().body
        assert answer.headers["Content-Security-Policy"] == dict(read_page().headers)["Content-Security-Policy"]
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"


def test_without_the_page_its_path_is_answered_like_any_other(starting):
    state, _ = starting
    answers = ProbeAnswers(state, has_page=False)
    assert (answers.answer("/").status, answers.answer("/status.json").status) == (503, 200)


def test_status_json_has_progress_and_spans_of_the_start(starting):
    _, get = starting

    def status() -> dict[str, Any]:
        with get("/status.json") as answer:
            return json.load(answer)

    wait_until(lambda: status()["progress"]["phase"] == "load_weights")
    content = status()
    assert (content["status"], content["model"], content["live"], content["error"]) == ("starting", "smol", None, None)
    assert any(span["name"] == "load_weights" for span in content["start"]["spans"])


def _families(body: bytes) -> dict[str, Any]:
    from prometheus_client.parser import text_string_to_metric_families

    return {family.name: family for family in text_string_to_metric_families(body.decode())}


def test_metrics_of_a_start_can_be_parsed(starting):
    _, get = starting
    with get("/metrics") as answer:
        families = _families(answer.read())
    assert families["vllm:engine_startup_time_seconds"].type == "gauge"
    assert families["vllm:engine_startup_time_seconds"].documentation
    assert families["vllm_cli:start_phase_seconds"].samples


def test_metrics_have_the_reasons_without_values_of_variables(monkeypatch):
    monkeypatch.setattr(start_origin, "cold_reason", 'no "standby" \\ runs')
    state = _state()
    change = {"kind": "variables", "name": "VLLM_HOST_IP", "before": "10.0.0.1", "now": "10.0.0.2"}
    state.set_compiled_model({"state": "compiled", "text": "…", "reason": "10.0.0.2", "difference": change})
    (info,) = _families(ProbeAnswers(state).answer("/metrics").body)["vllm_cli:start_info"].samples
    assert info.labels == {
        "start_mode": "cold",
        "reason": 'no "standby" \\ runs',
        "compile": "compiled",
        "compile_reason": "variables VLLM_HOST_IP",
    }


def test_the_phase_for_the_log_is_the_running_span_and_then_the_outcome(starting):
    state, _ = starting
    assert state.phase == "load_weights"
    state.fail("no memory")
    assert state.phase == "failed"


def test_a_private_start_answers_only_what_probes_need():
    answers = ProbeAnswers(_state(), is_private=True)
    statuses = {
        path: answers.answer(path).status for path in ("/", "/status.json", "/startupz", "/metrics", "/v1/models")
    }
    assert set(statuses.values()) == {503}
    assert b"smol" not in b"".join(answers.answer(path).body for path in statuses)
    assert answers.answer("/livez").status == 200


@pytest.mark.parametrize(
    ("request_bytes", "http_version"),
    [
        (_CURL, "1.1"),
        (_KUBELET, "1.1"),
        (b"GET /health HTTP/1.0\r\n\r\n", "1.0"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n", "1.1"),
        (b"GET /health HTTP/1.1\r\nAuthorization: Bearer k\r\n\r\n", "1.1"),
    ],
    ids=["curl", "kubelet", "http-1.0", "keep-alive", "with-a-key"],
)
def test_a_probe_is_recognized(request_bytes, http_version):
    for path in ("/health", "/livez", "/readyz"):
        assert parse_probe(request_bytes.replace(b"/health", path.encode())) == Probe(path, http_version)


_OTHERS = {
    "incomplete": _CURL[:-2],
    "head": _CURL.replace(b"GET", b"HEAD"),
    "post": _CURL.replace(b"GET", b"POST"),
    "query": _CURL.replace(b"/health", b"/health?x=1"),
    "longer-path": _CURL.replace(b"/health", b"/healthy"),
    "other-path": _CURL.replace(b"/health", b"/v1/models"),
    "cors": _CURL.replace(b"\r\n\r\n", b"\r\nOrigin: http://b\r\n\r\n"),
    "body": _CURL.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\nab"),
    "upgrade": _CURL.replace(b"\r\n\r\n", b"\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
    "request-id": _CURL.replace(b"\r\n\r\n", b"\r\nX-Request-Id: 7\r\n\r\n"),
    "folded-header": _CURL.replace(b"\r\n\r\n", b"\r\n folded\r\n\r\n"),
    "bare-line-feeds": _CURL.replace(b"\r\n", b"\n"),
    "other-version": _CURL.replace(b"1.1", b"2.0"),
    "tls": b"\x16\x03\x01\x02",
    "first-byte": b"G",
    "two-requests": _CURL + b"POST /v1/completions HTTP/1.1\r\n",
}


@pytest.mark.parametrize("request_bytes", _OTHERS.values(), ids=_OTHERS)
def test_any_other_request_is_left_to_the_http_server(request_bytes):
    assert parse_probe(request_bytes) is None


@pytest.mark.parametrize(("unknown_bytes", "is_known"), [(0, True), (1, False)])
def test_the_report_tells_what_was_resident_only_if_that_is_known(unknown_bytes, is_known):
    state = _state()
    state.finish(PrefetchReport("done", total_bytes=5, resident_bytes=4, unknown_bytes=unknown_bytes))
    assert (state.facts.page_cache is not None) == is_known


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[NotifySocket]:
    with NotifySocket() as socket:
        monkeypatch.setenv("NOTIFY_SOCKET", socket.address)
        yield socket


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StartSession:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    subject = StartSubject(
        model="smol",
        start_method="spawn",
        packages=(),
        history_key=lambda versions: "key",
        report_file=tmp_path / "report",
    )
    return StartSession(subject, PhaseTimeline.from_process_start())


def _preflight(*findings: Finding) -> Callable[[], PreflightReport]:
    return lambda: PreflightReport(findings, 0.1)


def test_a_ready_start_is_saved_and_reported(session, manager, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with session:
        listening = session.listen(ListenAddress("127.0.0.1", 0, None))
        url = "http://{}:{}".format(*listening.getsockname())
        assert ask(f"{url}/livez").status == 200
        session.limit_time(60)
        session.prefetch((), "off")
        session.check(_preflight(warning("disk", "little space")), "auto")
        session.hand_over()
        session.finish()
        session.notify_ready()
        assert session.phase() == "serving"
        session.drain()
        assert session.phase() == "draining"
    wait_until(lambda: "STOPPING=1" in manager.lines)
    assert f"READY=1\nSTATUS=ready: {url}" in manager.messages
    assert "STATUS=preflight" in manager.lines
    assert "little space" in caplog.messages
    assert any("VLLM_WORKER_MULTIPROC_METHOD=spawn makes this start slower" in line for line in caplog.messages)
    assert caplog.messages[-1].endswith(f" s (cold): {url}")
    assert "phases of this start:" in caplog.text
    assert json.loads((tmp_path / "report").read_text())["outcome"] == "ready"
    assert len(list((tmp_path / "vllm_cli" / "history").iterdir())) == 1
    with StartSession(session.state.subject, PhaseTimeline.from_process_start()) as second:
        listening = second.listen(ListenAddress("127.0.0.1", 0, None))
        second.check(_preflight(), "auto")
        with second.timeline.span("load"):
            progress = ask("http://{}:{}/health".format(*listening.getsockname())).json
    assert 0 <= progress["progress"] < 1 and progress["eta_s"] >= 0, "by the start before"


def test_a_failed_start_is_reported_and_closed(session, manager, tmp_path):
    with pytest.raises(StartupError, match="2 faults:\n  no weights\n  no memory"), session:
        listening = session.listen(ListenAddress("127.0.0.1", 0, None))
        session.check(_preflight(error("weights", "no weights"), error("memory", "no memory")), "auto")
    assert listening.fileno() == -1
    wait_until(lambda: any(line.startswith("STATUS=failed: 2 faults: no weights") for line in manager.lines))
    report = json.loads((tmp_path / "report").read_text())
    assert (report["outcome"], report["error"]) == ("failed", "2 faults:\n  no weights\n  no memory")
    assert not (tmp_path / "vllm_cli" / "history").exists()


def test_a_report_that_cannot_be_written_is_a_warning(session, tmp_path, caplog):
    (tmp_path / "report").mkdir()
    with session:
        session.finish()
    assert f"the start-up report could not be written to {tmp_path / 'report'}: Is a directory" in caplog.text


def test_errors_of_the_preflight_may_be_warnings(session, caplog):
    with session:
        session.check(_preflight(error("weights", "no weights")), "warn")
    assert [(record.levelname, record.message) for record in caplog.records] == [("WARNING", "no weights")]


def test_no_status_follows_readiness(session, manager):
    with session:
        session.notify_ready("ready, address unknown")
        with session.timeline.span("vllm"):
            session.notify_stopping("exited")
    wait_until(lambda: "STOPPING=1" in manager.lines)
    assert [message.splitlines()[-1] for message in manager.messages] == [
        "STATUS=ready, address unknown",
        "STATUS=exited",
    ]


def test_with_listen_when_ready_a_port_is_only_bound_and_a_unix_socket_listens(session, tmp_path):
    with session:
        port = session.listen(ListenAddress("127.0.0.1", 0, None, when_ready=True))
        assert not is_listening(port)
        with pytest.raises(ConnectionRefusedError), socket.create_connection(port.getsockname()):
            pass
        uds = session.listen(ListenAddress(None, 0, str(tmp_path / "socket"), when_ready=True))
        assert is_listening(uds)


@pytest.mark.parametrize("way", ["port", "uds", "when-ready", "terminal"])
def test_a_log_says_that_the_port_answers_503_where_a_script_may_read_it(session, monkeypatch, tmp_path, way):
    """A script that waits with `curl -s` but without `-f` takes any answer for readiness."""
    if way == "terminal":
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    uds = str(tmp_path / "s") if way == "uds" else None
    with session:
        session.listen(ListenAddress("127.0.0.1", 0, uds, when_ready=way == "when-ready"))
        assert ("VCLI_LISTEN_WHEN_READY=1" in session._log_note) == (way == "port")
