"""The service manager hears how the start goes, over real sockets; one that is not there hurts nobody."""

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
def heard(request: pytest.FixtureRequest, tmp_path: Path):
    address = str(tmp_path / "notify") if request.param == "path" else f"@vllm-cli-test-{uuid4()}"
    with NotifySocket(address) as listening:
        yield listening


def test_a_start_is_told_phase_by_phase(heard: NotifySocket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", heard.address)
    with closing(ServiceManager.from_environment()) as manager:
        for status in ("load weights", "load weights", "first\ntoken"):
            manager.notify_status(status)
        manager.notify_ready("ready: http://x")
        manager.notify_stopping("finishing")
        manager.notify_failure("why\nnot")
    wait_until(lambda: len(heard.messages) == 5)
    assert heard.messages == [
        "STATUS=load weights",
        "STATUS=first token",
        "READY=1\nSTATUS=ready: http://x",
        "STOPPING=1\nSTATUS=finishing",
        "STATUS=failed: why not",
    ]


async def test_the_watchdog_hears_the_event_loop(heard: NotifySocket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", heard.address)
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with closing(ServiceManager.from_environment()) as manager:
        manager.notify_ready("ready")
        while heard.messages.count("WATCHDOG=1") < 5:
            await asyncio.sleep(0.005)
    num_beats = len(asyncio.all_tasks())
    assert num_beats == 1  # the timer ends with the manager


async def test_the_watchdog_of_another_process_is_not_ours(heard: NotifySocket, monkeypatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", heard.address)
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    with closing(ServiceManager.from_environment()) as manager:
        manager.notify_ready("ready")
        manager.notify_stopping("over")
    wait_until(lambda: len(heard.messages) == 2)
    assert "WATCHDOG=1" not in heard.lines


def test_without_a_manager_nothing_is_done(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with closing(ServiceManager.from_environment()) as manager:
        manager.notify_status("x")
        manager.notify_ready("x")
        manager.notify_stopping("x")
    assert caplog.records == []


@pytest.mark.parametrize("address", ["/nowhere/notify", "@vllm-cli-nobody", "vsock:2:1234"])
def test_a_manager_that_cannot_be_told_is_a_warning(address: str, caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with caplog.at_level(logging.WARNING), closing(ServiceManager.from_environment()) as manager:
        manager.notify_ready("ready")
    [record] = caplog.records
    assert address in record.getMessage()
