"""The relay of messages to a service manager, with real sockets and processes."""

import os
import socket
import subprocess
import sys
from contextlib import suppress

import pytest

from startup.systemd.notify_relay import NotifyRelay
from tests.startup.systemd.notify_socket import NotifySocket
from tests.startup.vllm.fake_start import short_folder
from tests.waiting import wait_until

_SEND = """
import socket, sys
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for message in sys.argv[2:]:
    sender.sendto(message.encode(), "\\0" + sys.argv[1][1:])
"""


def _send(address: str, *messages: str) -> int:
    """Sends from another process, which has ended afterwards; returns its process id."""
    process = subprocess.Popen([sys.executable, "-c", _SEND, address, *messages])
    assert process.wait(60) == 0
    return process.pid


@pytest.mark.parametrize("is_abstract", [False, True], ids=["path", "abstract"])
def test_messages_of_the_server_arrive_as_this_processes_own(is_abstract):
    with short_folder() as folder:
        address = f"@vllm-cli-{os.getpid()}" if is_abstract else str(folder / "notify")
        with NotifySocket(address) as notified:
            relay = NotifyRelay(address)
            server_pid = _send(relay.address, "STATUS=preflight", "READY=1\nSTATUS=ready")
            relay.forward(server_pid)
            wait_until(lambda: "STATUS=ready" in notified.lines)
            assert notified.messages == ["STATUS=preflight", "READY=1\nSTATUS=ready"]
            assert notified.senders == {os.getpid()}
            relay.close()


def test_messages_of_other_processes_are_dropped():
    with short_folder() as folder, NotifySocket(str(folder / "notify")) as notified:
        relay = NotifyRelay(notified.address)
        _send(relay.address, "MAINPID=1")
        server_pid = _send(relay.address, "WATCHDOG=1")
        relay.forward(server_pid)
        wait_until(lambda: notified.messages)
        assert notified.messages == ["WATCHDOG=1"]
        relay.close()


def test_a_manager_that_has_ended_is_no_error():
    with short_folder() as folder:
        with NotifySocket(str(folder / "notify")) as notified:
            relay = NotifyRelay(notified.address)
            server_pid = _send(relay.address, "STOPPING=1")
        relay.forward(server_pid)
        relay.close()


def test_a_manager_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(OSError):
        NotifyRelay(str(tmp_path / "notify"))


def test_a_message_that_may_be_lost_does_not_wait_for_a_busy_manager():
    with short_folder() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        relay = NotifyRelay(str(folder / "notify"))
        for _ in range(1000):  # more than the queue of a socket takes
            server_pid = _sent_by_this_process(relay.address, b"WATCHDOG=1")
            relay.forward(server_pid)
        relay.close()
        manager.setblocking(False)
        num_received = 0
        with suppress(BlockingIOError):
            while manager.recv(64) == b"WATCHDOG=1":
                num_received += 1
        assert num_received > 0


def _sent_by_this_process(address: str, message: bytes) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(message, f"\0{address[1:]}")
    return os.getpid()
