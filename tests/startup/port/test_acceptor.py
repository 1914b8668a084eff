"""The port listens before anything slow happens. The responder accepts while the event loop does not run."""

import fcntl
import os
import select
import socket
import termios
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count, islice
from pathlib import Path

import psutil
import pytest

from startup.errors import PortInUseError, StartupError
from startup.port import acceptor
from startup.port.acceptor import ACCEPTING, BEAT, TURN_S, AnsweredProbe, Heartbeat
from startup.port.listener import describe, listen
from startup.port.responder import StartupResponder
from tests.startup.port.conftest import Answers
from tests.support.cli import run_python
from tests.support.ports import free_port, needs_ipv6
from tests.support.waiting import wait_until

_PROBE = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
_POST = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
_HEALTHY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class _Responder:
    """A responder that accepts connections. Connections that it passes on are received only by `receive`."""

    def __init__(self, stack: ExitStack, listener: socket.socket) -> None:
        self._stack = stack
        self._address = listener.getsockname()
        others = set(psutil.Process().children())
        responder = stack.enter_context(StartupResponder(listener, Answers()))
        (self.process,) = set(psutil.Process().children()) - others
        link = responder.keep()
        link.settimeout(60)
        assert link.recv(100) == ACCEPTING
        self.link = link

    def beat(self, answer: bytes) -> None:
        """Sends a heartbeat with the server's answer. Returns once the responder has received it."""
        self.link.send(BEAT + answer)
        while array("i", fcntl.ioctl(self.link, termios.TIOCOUTQ, bytes(4)))[0]:
            time.sleep(0.001)

    def ask(self) -> socket.socket:
        """A client that has an unread answer 200, and whose connection the responder has closed."""
        self.beat(_HEALTHY)
        client = self.connect(_PROBE)
        closed = select.poll()
        closed.register(client, select.POLLRDHUP)
        assert closed.poll(60_000)
        return client

    def receive(self) -> socket.socket:
        """Receives the next connection that the responder passes on."""
        fds: list[int] = []
        while not fds:
            _, fds, _, _ = socket.recv_fds(self.link, 1 << 12, 1)
        connection = self._stack.enter_context(socket.socket(fileno=fds[0]))
        connection.settimeout(60)
        return connection

    def connect(self, request: bytes) -> socket.socket:
        client = self._stack.enter_context(socket.create_connection(self._address, timeout=60))
        client.sendall(request)
        return client

    def leave_descriptors(self, number: int) -> None:
        """Limits the descriptors that the process may still open. The limit is the highest number."""
        used = {int(path.name) for path in Path(f"/proc/{self.process.pid}/fd").iterdir()}
        limit = next(islice((fd for fd in count() if fd not in used), number, None))
        self.process.rlimit(psutil.RLIMIT_NOFILE, (limit, limit))


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    """An exit stack for a test that may hold an event loop for longer than a server may."""
    monkeypatch.setattr(acceptor, "STALE_S", 120.0)
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def responder(stack: ExitStack, listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> _Responder:
    """A responder whose socket keeps only few messages for an event loop that does not run."""
    monkeypatch.setattr(acceptor, "_SEND_BUFFER_BYTES", 1)
    return _Responder(stack, listener)


def _read_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(1 << 12), b""))


def test_a_probe_is_answered_and_logged_and_its_connection_closed(responder):
    client = responder.ask()
    assert _read_all(client) == _HEALTHY
    logged = AnsweredProbe("{}:{}".format(*client.getsockname()), "/health", "1.1", "200")
    while AnsweredProbe.decode(responder.link.recv(1 << 12)) != logged:
        pass  # others before it


@pytest.mark.parametrize("sent", [_PROBE + _POST, _PROBE[:10], b""], ids=["with a request", "a part", "nothing"])
def test_what_is_not_one_whole_probe_is_passed_on(sent, responder):
    responder.ask()
    client = responder.connect(sent)
    connection = responder.receive()
    assert connection.getpeername() == client.getsockname()
    assert not sent or connection.recv(1 << 12) == sent


def test_a_client_that_sends_another_request_after_an_answered_probe_has_the_answer_and_then_the_end(responder):
    client = responder.ask()
    client.sendall(_POST)
    assert _read_all(client) == _HEALTHY


def test_probes_are_passed_on_while_the_server_answers_each_itself(responder):
    responder.beat(b"")
    responder.connect(_PROBE)
    assert responder.receive().recv(1 << 12) == _PROBE


def test_probes_are_answered_while_nothing_can_be_passed_on(responder):
    for _ in range(30):
        responder.connect(_POST)
    responder.ask()
    assert [responder.receive().recv(1 << 12) for _ in range(30)] == [_POST] * 30


def test_the_process_sleeps_while_every_descriptor_waits_to_be_passed_on(responder):
    responder.leave_descriptors(8)
    for _ in range(40):
        responder.connect(_POST)
    for _ in range(3):  # a process that polls is never asleep, or only between two short turns
        wait_until(lambda: responder.process.status() == psutil.STATUS_SLEEPING)
    assert [responder.receive().recv(1 << 12) for _ in range(40)] == [_POST] * 40
    responder.ask()


def test_no_time_passes_while_the_process_itself_is_stopped():
    """A frozen container stops the whole process. Only turns of the responder age the last heartbeat."""
    heartbeat = Heartbeat()
    now = time.monotonic()
    heartbeat.receive(_HEALTHY, now)
    heartbeat.turn(now)
    heartbeat.turn(now + 1000.0)
    assert heartbeat.current_answer(now + 1000.0) == _HEALTHY
    for turn in range(100):
        heartbeat.turn(now + 1000.0 + turn * TURN_S)
    assert b"has not run for" in heartbeat.current_answer(now + 1000.0 + 99 * TURN_S)


_PROGRAM = """
import os, time
from startup.port.acceptor import RealtimePriority
priority = RealtimePriority(is_wanted={is_wanted})
policies = [os.sched_getscheduler(0)]
while time.process_time() < 1:
    pass
priority.turn(priority._began_s + 1)  # whatever time this has taken
policies.append(os.sched_getscheduler(0))
priority.turn(time.monotonic() + 60)
policies.append(os.sched_getscheduler(0))
print(policies)
"""


def _policies(*, is_wanted: bool) -> str:
    return run_python(_PROGRAM.format(is_wanted=is_wanted), check=True).stdout.strip()


@pytest.mark.thorough
def test_a_process_that_needs_little_has_priority_again_if_it_is_wanted():
    assert _policies(is_wanted=False) == str([os.SCHED_OTHER] * 3)
    if run_python("import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))").returncode:
        pytest.skip("needs CAP_SYS_NICE")
    policies = [os.SCHED_FIFO, os.SCHED_OTHER, os.SCHED_FIFO]
    assert _policies(is_wanted=True) == str([policy | os.SCHED_RESET_ON_FORK for policy in policies])


def test_second_server_on_the_port_fails_with_its_address():
    with listen(host="127.0.0.1", port=0, uds=None) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortInUseError, match=rf"127\.0\.0\.1:{port} is in use"):
            listen(host="127.0.0.1", port=port, uds=None)


def test_port_of_a_server_that_has_just_exited_is_free_again():
    port = free_port()  # not handed out to another test meanwhile
    with listen(host="127.0.0.1", port=port, uds=None) as first:
        client = socket.create_connection(first.getsockname())
        first.accept()[0].close()
    client.close()
    listen(host="127.0.0.1", port=port, uds=None).close()


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 0), ("127.0.0.1", 99999)])
def test_an_address_that_does_not_exist_is_a_startup_error_with_the_address(host, port):
    with pytest.raises(StartupError, match=f"{host}:{port}"):
        listen(host=host, port=port, uds=None)


def test_a_unix_socket_left_behind_is_replaced_and_that_of_a_running_server_is_not(tmp_path):
    path = tmp_path / "server.sock"
    listen(host=None, port=0, uds=str(path)).close()
    assert path.exists()
    with listen(host=None, port=0, uds=str(path)) as listener, pytest.raises(PortInUseError, match="server.sock"):
        assert describe(listener) == f"unix:{path}"
        listen(host=None, port=0, uds=str(path))


def test_unix_socket_of_a_server_with_a_full_queue_is_not_replaced(tmp_path):
    path = tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        client.connect(str(path))
        with pytest.raises(PortInUseError, match="server.sock"):
            listen(host=None, port=0, uds=str(path))


def test_file_that_is_not_a_socket_is_not_removed(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("keep me")
    with pytest.raises(StartupError):
        listen(host=None, port=0, uds=str(path))
    assert path.read_text() == "keep me"


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "http://127.0.0.1:"), pytest.param("::1", "http://[::1]:", marks=needs_ipv6)],
)
def test_address_is_shown_as_a_url(host, shown):
    with listen(host=host, port=0, uds=None) as listener:
        assert describe(listener).startswith(shown)
