"""A start session reports each step to probes, service manager, log and files."""

import json
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from startup.errors import StartupError
from startup.port.listener import is_listening
from startup.reports.timeline.history import StartSubject
from startup.reports.timeline.timeline import PhaseTimeline
from startup.session.preflight.report import Finding, PreflightReport, error, warning
from startup.session.session import ListenAddress, StartSession
from tests.startup.port.notify_socket import NotifySocket
from tests.support.http_client import ask
from tests.support.waiting import wait_until


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
    report = json.loads((tmp_path / "report").read_text())
    assert report["outcome"] == "ready"
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
