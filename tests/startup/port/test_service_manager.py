"""The service manager is notified of each phase, also by the relay. The manager's sockets are used."""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from startup.port.notify_relay import NotifyRelay
from startup.port.service_manager import ServiceManager
from tests.startup.port.notify_socket import NotifySocket
from tests.support.folders import short_folder
from tests.support.waiting import wait_until

_TAKE = """
import json, os, sys
given = [int(fd) for fd in sys.argv[1:]]
for number, fd in enumerate(os.dup(fd) for fd in given):
    os.dup2(fd, 10 + number)  # keeps 3 and following free
for number in range(len(given)):
    os.dup2(10 + number, 3 + number)
os.environ["LISTEN_PID"] = os.environ["LISTEN_PID"].replace("own", str(os.getpid()))
from startup.port.service_manager import take_socket
taken = take_socket()
print(json.dumps({
    "fd": taken.fileno() if taken else None,
    "address": taken.getsockname() if taken else None,
    "inheritable": [os.get_inheritable(3 + number) for number in range(len(given))],
    "variables": [name for name in os.environ if name.startswith("LISTEN_")],
}))
"""


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path):
    with NotifySocket(str(tmp_path / "notify") if request.param == "path" else "") as notify_socket:
        yield notify_socket


def test_each_change_of_status_is_sent_once(manager, monkeypatch):
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


async def test_the_watchdog_gets_a_heartbeat_from_the_event_loop(manager, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with closing(ServiceManager.from_environment()) as service:
        service.notify_ready("ready")
        while manager.messages.count("WATCHDOG=1") < 5:
            await asyncio.sleep(0.005)
    assert len(asyncio.all_tasks()) == 1  # this test: the timer ends with the manager


async def test_the_watchdog_of_another_process_gets_no_heartbeat(manager, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    with closing(ServiceManager.from_environment()) as service:
        service.notify_ready("ready")
        service.notify_stopping("over")
    wait_until(lambda: len(manager.messages) == 2)
    assert "WATCHDOG=1" not in manager.lines


@pytest.mark.parametrize("address", ["/nowhere/notify", "@vllm-cli-nobody", "vsock:2:1234"])
def test_a_manager_that_cannot_be_notified_is_a_warning(address, caplog, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with caplog.at_level(logging.WARNING), closing(ServiceManager.from_environment()) as service:
        service.notify_ready("ready")
    [record] = caplog.records
    assert address in record.getMessage()


def _take(*listeners: socket.socket, pid: str = "own") -> subprocess.CompletedProcess[str]:
    fds = [listener.fileno() for listener in listeners]
    environment = os.environ | {"LISTEN_PID": pid, "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": "a:b"}
    arguments = [sys.executable, "-c", _TAKE, *map(str, fds)]
    return subprocess.run(arguments, env=environment, pass_fds=fds, capture_output=True, text=True, timeout=200)


@pytest.fixture
def listeners():
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        yield first, second


def test_the_first_socket_is_used_and_no_child_inherits_any(listeners):
    done = _take(*listeners)
    taken = json.loads(done.stdout)
    assert taken["fd"] == 3
    assert tuple(taken["address"]) == listeners[0].getsockname()
    assert taken["inheritable"] == [False, False]
    assert taken["variables"] == []
    assert "2 sockets were passed: the first is used" in done.stderr


def test_sockets_of_another_process_are_left_alone(listeners):
    taken = json.loads(_take(*listeners, pid="1").stdout)
    assert taken["fd"] is None
    assert len(taken["variables"]) == 3


@pytest.mark.parametrize("kind", ["datagrams", "not listening"])
def test_a_socket_that_accepts_no_connections_is_an_error(kind):
    type_ = socket.SOCK_DGRAM if kind == "datagrams" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, type_) as bound:
        bound.bind(("127.0.0.1", 0))
        done = _take(bound)
    assert "StartupError: LISTEN_FDS: descriptor 3 does not listen. Use ListenStream= with Accept=no" in done.stderr


_SEND = """
import socket, sys
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for message in sys.argv[2:]:
    sender.sendto(message.encode(), "\\0" + sys.argv[1][1:])
"""


def _send(address: str, *messages: str) -> int:
    """Sends messages from another process, and waits for its end. Returns its process id."""
    process = subprocess.Popen([sys.executable, "-c", _SEND, address, *messages])
    assert process.wait(60) == 0
    return process.pid


def test_messages_of_other_processes_are_dropped():
    with short_folder() as folder, NotifySocket(str(folder / "notify")) as notified:
        relay = NotifyRelay(notified.address)
        _send(relay.address, "MAINPID=1")
        relay.forward(_send(relay.address, "WATCHDOG=1"))
        wait_until(lambda: notified.messages)
        assert notified.messages == ["WATCHDOG=1"]
        relay.close()


def test_a_manager_that_ends_is_no_error_and_one_that_does_not_exist_is():
    with short_folder() as folder:
        with NotifySocket(str(folder / "notify")) as notified:
            relay = NotifyRelay(notified.address)
            server_pid = _send(relay.address, "STOPPING=1")
        relay.forward(server_pid)
        relay.close()
        with pytest.raises(OSError):
            NotifyRelay(notified.address)


def test_a_message_that_may_be_lost_does_not_wait_for_a_busy_manager():
    datagrams = (socket.AF_UNIX, socket.SOCK_DGRAM)
    with short_folder() as folder, socket.socket(*datagrams) as manager, socket.socket(*datagrams) as sender:
        manager.bind(str(folder / "notify"))
        relay = NotifyRelay(str(folder / "notify"))
        for _ in range(1000):  # more than the queue of a socket takes
            sender.sendto(b"WATCHDOG=1", f"\0{relay.address[1:]}")
            relay.forward(os.getpid())
        relay.close()
        manager.setblocking(False)
        num_received = 0
        with suppress(BlockingIOError):
            while manager.recv(64) == b"WATCHDOG=1":
                num_received += 1
        assert num_received > 0
