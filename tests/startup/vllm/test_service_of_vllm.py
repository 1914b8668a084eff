"""A service manager gets the same notifications for vLLM as for the embedded engine, as far as possible."""

import socket
from pathlib import Path
from uuid import uuid4

import pytest

from tests.startup.systemd.notify_socket import NotifySocket
from tests.startup.vllm.fake_start import FakeStart, environment, run_fake
from tests.waiting import wait_until

pytestmark = pytest.mark.thorough

_OFF = "WATCHDOG_USEC=0"


def _address() -> str:
    return f"@vllm-cli-test-{uuid4()}"


def _environment(folder: Path, manager: NotifySocket, **changes: str) -> dict[str, str]:
    return environment(folder, NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="200000", **changes)


def test_a_service_manager_gets_every_phase_and_watchdog_notifications(folder):
    gate = folder / "gate"
    with (
        NotifySocket(_address()) as manager,
        FakeStart(folder, "--gate", str(gate), env=_environment(folder, manager)) as start,
    ):
        wait_until(lambda: "STATUS=vllm" in manager.lines or start.process.poll() is not None)
        assert "STATUS=import vllm" in manager.lines
        assert "READY=1" not in manager.lines
        gate.touch()
        wait_until(lambda: "READY=1" in manager.lines or start.process.poll() is not None)
        assert start.get("/health")[0] == 200
        messages = [message for message in list(manager.messages) if message != "WATCHDOG=1"]
        assert messages[-1] == f"READY=1\nSTATUS=ready: http://127.0.0.1:{start.port}"
        wait_until(lambda: manager.lines.count("WATCHDOG=1") >= 3)
        assert start.end() == 0
        assert [message.splitlines()[0] for message in manager.messages].index("STOPPING=1") > 0
        assert "STATUS=finishing running requests" in manager.lines
        assert _OFF not in manager.lines


def test_a_phase_of_seconds_is_logged_meanwhile(folder):
    gate = folder / "gate"
    with FakeStart(folder, "--gate", str(gate)) as start:
        start.wait_for_line("s: vllm")
        gate.touch()
        start.wait_until_ready()
        assert start.end() == 0
        (line,) = start.lines_with("s: vllm")
        assert "starting for " in line


@pytest.mark.parametrize(
    ("words", "changes", "status"),
    [
        (("--api-server-count", "2"), {}, "ready: http://"),
        (("--headless",), {}, "node without an API server"),
        ((), {"VCLI_PLAIN_VLLM": "1"}, "vLLM was started; its readiness is not known"),
    ],
    ids=["several-servers", "headless", "plain"],
)
def test_the_watchdog_is_disabled_if_this_process_has_no_event_loop(words, changes, status, folder):
    with (
        NotifySocket(_address()) as manager,
        FakeStart(folder, *words, env=_environment(folder, manager, **changes)) as start,
    ):
        wait_until(lambda: "READY=1" in manager.lines or start.process.poll() is not None)
        [ready] = [message for message in manager.messages if "READY=1" in message]
        assert _OFF in ready.splitlines()
        assert f"STATUS={status}" in ready
        start.record_tree()
        assert "WATCHDOG=1" not in manager.lines


def test_a_port_in_use_is_an_error_and_the_last_status(folder):
    with NotifySocket(_address()) as manager, socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = run_fake(folder, "--host", "127.0.0.1", "--port", port, env=_environment(folder, manager))
        error = f"127.0.0.1:{port} is in use by another process"
        assert (done.returncode, done.stderr) == (3, f"Error: {error}: stop it or choose another --port\n")
        wait_until(lambda: any(line.startswith(f"STATUS=failed: {error}") for line in manager.lines))


def test_help_sends_no_notification(folder):
    with NotifySocket(_address()) as manager:
        assert run_fake(folder, "--help", env=_environment(folder, manager)).returncode == 0
    assert manager.messages == []


def test_an_engine_that_cannot_start_is_never_ready(folder):
    with NotifySocket(_address()) as manager:
        assert run_fake(folder, "--engine-fails", "--port", "0", env=_environment(folder, manager)).returncode == 3
        wait_until(lambda: any(line.startswith("STATUS=failed: EngineCore (pid ") for line in manager.lines))
        assert "STOPPING=1" in manager.lines
        assert "READY=1" not in manager.lines
