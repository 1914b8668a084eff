"""Sockets passed by a service manager: descriptors from 3 on, for the process that LISTEN_PID names."""

import json
import os
import socket
import subprocess
import sys

import pytest

_TAKE = """
import json, os, sys
given = [int(fd) for fd in sys.argv[1:]]
for number, fd in enumerate(os.dup(fd) for fd in given):
    os.dup2(fd, 10 + number)  # keeps 3 and following free
for number in range(len(given)):
    os.dup2(10 + number, 3 + number)
os.environ["LISTEN_PID"] = os.environ["LISTEN_PID"].replace("own", str(os.getpid()))
from startup.systemd.service_manager import take_socket
taken = take_socket()
print(json.dumps({
    "fd": taken.fileno() if taken else None,
    "address": taken.getsockname() if taken else None,
    "inheritable": [os.get_inheritable(3 + number) for number in range(len(given))],
    "variables": [name for name in os.environ if name.startswith("LISTEN_")],
}))
"""


def _take(*listeners: socket.socket, pid: str = "own") -> subprocess.CompletedProcess[str]:
    fds = [listener.fileno() for listener in listeners]
    environment = os.environ | {"LISTEN_PID": pid, "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": "a:b"}
    words = [sys.executable, "-c", _TAKE, *map(str, fds)]
    return subprocess.run(words, env=environment, pass_fds=fds, capture_output=True, text=True, timeout=200)


@pytest.fixture
def listeners():
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        yield first, second


def test_the_first_socket_is_used_and_no_child_inherits_any(listeners) -> None:
    done = _take(*listeners)
    taken = json.loads(done.stdout)
    assert taken["fd"] == 3
    assert tuple(taken["address"]) == listeners[0].getsockname()
    assert taken["inheritable"] == [False, False]
    assert taken["variables"] == []
    assert "2 sockets were passed: the first is used" in done.stderr


def test_sockets_of_another_process_are_left_alone(listeners) -> None:
    taken = json.loads(_take(*listeners, pid="1").stdout)
    assert taken["fd"] is None
    assert len(taken["variables"]) == 3


@pytest.mark.parametrize("kind", ["datagrams", "not listening"])
def test_a_socket_that_accepts_no_connections_is_an_error(kind: str) -> None:
    type_ = socket.SOCK_DGRAM if kind == "datagrams" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, type_) as bound:
        bound.bind(("127.0.0.1", 0))
        done = _take(bound)
    assert "StartupError: LISTEN_FDS: descriptor 3 does not listen: use ListenStream= with Accept=no" in done.stderr
