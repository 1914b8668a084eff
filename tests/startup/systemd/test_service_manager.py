"""The service manager is notified of each phase over real sockets; a missing one does no harm."""

import asyncio
import logging
import os
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from startup.systemd.service_manager import ServiceManager
from tests.startup.systemd.notify_socket import NotifySocket
from tests.waiting import wait_until


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path):
    address = str(tmp_path / "notify") if request.param == "path" else f"@vllm-cli-test-{uuid4()}"
    with NotifySocket(address) as notify_socket:
        yield notify_socket


def test_each_change_of_status_is_sent_once(manager: NotifySocket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    with closing(ServiceManager.from_environment()) as service:
        for status in ("load weights", "load weights", "first\ntoken"):
            service.notify_status(status)
        service.notify_ready("ready: http://x")
        service.notify_stopping("finishing")
        service.notify_failure("why\nnot")
    wait_until(lambda: len(manager.messages) == 5)
    assert manager.messages == [
        "STATUS=load weights",
        "STATUS=first token",
        "READY=1\nSTATUS=ready: http://x",
        "STOPPING=1\nSTATUS=finishing",
        "STATUS=failed: why not",
    ]


async def test_the_watchdog_gets_a_heartbeat_from_the_event_loop(
    manager: NotifySocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with closing(ServiceManager.from_environment()) as service:
        service.notify_ready("ready")
        while manager.messages.count("WATCHDOG=1") < 5:
            await asyncio.sleep(0.005)
    assert len(asyncio.all_tasks()) == 1  # this test: the timer ends with the manager


async def test_the_watchdog_of_another_process_gets_no_heartbeat(manager: NotifySocket, monkeypatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    with closing(ServiceManager.from_environment()) as service:
        service.notify_ready("ready")
        service.notify_stopping("over")
    wait_until(lambda: len(manager.messages) == 2)
    assert "WATCHDOG=1" not in manager.lines


def test_without_a_manager_nothing_is_sent_or_logged(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with closing(ServiceManager.from_environment()) as service:
        service.notify_status("x")
        service.notify_ready("x")
        service.notify_stopping("x")
    assert caplog.records == []


@pytest.mark.parametrize("address", ["/nowhere/notify", "@vllm-cli-nobody", "vsock:2:1234"])
def test_a_manager_that_cannot_be_notified_is_a_warning(address: str, caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with caplog.at_level(logging.WARNING), closing(ServiceManager.from_environment()) as service:
        service.notify_ready("ready")
    [record] = caplog.records
    assert address in record.getMessage()
