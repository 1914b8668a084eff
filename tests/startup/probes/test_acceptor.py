"""The responder's process accepts for a server whose event loop does not receive, with few descriptors."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import count, islice
from pathlib import Path

import psutil
import pytest

from startup.probes import acceptor, report_queue
from startup.probes.acceptor import TURN_S, Heartbeat
from startup.probes.listener import listen
from startup.probes.responder import StartupResponder
from startup.probes.serving_messages import HealthAnswer, Kind, Report, ServingSettings
from tests.startup.probes.conftest import Answers

_PROBE = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
_POST = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
_HEALTHY = HealthAnswer(200, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n", b"")


class _Responder:
    """A responder's process that accepts; this process receives what it passes on only when it is told to."""

    def __init__(self, stack: ExitStack, *, accept_delay_s: float = 0.0, keep_alive_s: int = 1000) -> None:
        self._stack = stack
        self.listener = listener = stack.enter_context(listen(host="127.0.0.1", port=0, uds=None))
        self._address = listener.getsockname()
        others = set(psutil.Process().children())
        responder = stack.enter_context(StartupResponder(listener, Answers()))
        (self.process,) = set(psutil.Process().children()) - others
        settings = ServingSettings(
            keep_alive_s=keep_alive_s, reports_probes=False, wants_realtime=False, accept_delay_s=accept_delay_s
        )
        link = responder.keep(settings)
        assert link is not None
        self._link = link
        self.beat()

    def beat(self) -> None:
        """The event loop runs: the answer is sent, and its receipt awaited."""
        self._link.setblocking(True)
        self._link.send(_HEALTHY.encode())
        while self._receive()[0].kind is not Kind.ECHO:
            pass

    def _receive(self) -> tuple[Report, list[socket.socket]]:
        message, fds, _, _ = socket.recv_fds(self._link, 1 << 12, 1)
        return Report.decode(message), [self._stack.enter_context(socket.socket(fileno=fd)) for fd in fds]

    def take(self, number: int) -> list[bytes]:
        """Receives this many connections; returns their first bytes."""
        first: list[bytes] = []
        held: dict[int, socket.socket] = {}
        while len(first) < number:
            report, connections = self._receive()
            if report.kind is Kind.HOLD:
                held[report.connection_id] = connections[0]
            elif report.kind is Kind.TAKE:
                connection = connections[0] if connections else held.pop(report.connection_id)
                connection.settimeout(60)  # one that was accepted before its client has sent anything
                first.append(connection.recv(1 << 12))
        return first

    def connect(self, request: bytes) -> socket.socket:
        client = self._stack.enter_context(socket.create_connection(self._address, timeout=60))
        client.sendall(request)
        return client

    def leave_descriptors(self, number: int) -> None:
        """From now on, the process may open so many more, which the limit names by their highest number."""
        used = {int(path.name) for path in Path(f"/proc/{self.process.pid}/fd").iterdir()}
        free = (fd for fd in count() if fd not in used)
        limit = next(islice(free, number, None))
        self.process.rlimit(psutil.RLIMIT_NOFILE, (limit, limit))


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    """Of a test that may take longer than an event loop may be held."""
    monkeypatch.setattr(acceptor, "STALE_S", 120.0)
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def held(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> _Responder:
    """The kernel keeps only a few messages for an event loop that does not run."""
    monkeypatch.setattr(report_queue, "_SEND_BUFFER_BYTES", 1)
    return _Responder(stack)


def _answer(client: socket.socket) -> bytes:
    return client.recv(1 << 12)


def _is_open(client: socket.socket) -> bool:
    client.settimeout(0)
    with suppress(BlockingIOError):
        return client.recv(1) != b""
    return True


def test_probes_are_answered_while_nothing_can_be_passed_on(held):
    for _ in range(30):
        held.connect(_POST)
    kept = held.connect(_PROBE)
    for _ in range(3):
        assert _answer(kept).startswith(b"HTTP/1.1 200 ")
        kept.sendall(_PROBE)
    late = held.connect(b"")
    late.sendall(_PROBE)
    assert _answer(late).startswith(b"HTTP/1.1 200 ")
    assert held.take(30) == [_POST] * 30


def test_a_kept_connection_is_closed_after_the_keep_alive_time(stack):
    client = _Responder(stack, keep_alive_s=1).connect(_PROBE)
    assert _answer(client).startswith(b"HTTP/1.1 200 ")
    assert _answer(client) == b""


def test_the_oldest_answered_client_is_closed_if_no_descriptor_is_free(stack):
    responder = _Responder(stack)
    responder.leave_descriptors(8)
    clients = []
    for _ in range(20):
        clients.append(responder.connect(_PROBE))
        assert _answer(clients[-1]).startswith(b"HTTP/1.1 200 ")
    is_open = [_is_open(client) for client in clients]
    assert is_open == sorted(is_open)
    assert 0 < sum(is_open) < len(clients)


def test_no_client_is_closed_for_one_that_the_server_may_accept(stack):
    responder = _Responder(stack, accept_delay_s=0.001)
    responder.leave_descriptors(8)
    clients = [responder.connect(_PROBE) for _ in range(8)]
    assert all(_answer(client).startswith(b"HTTP/1.1 200 ") for client in clients)
    late = responder.connect(_PROBE)
    late.settimeout(0.5)
    with pytest.raises(TimeoutError):
        _answer(late)
    assert all(map(_is_open, clients))
    accepted, _ = responder.listener.accept()
    stack.enter_context(accepted)
    assert accepted.recv(1 << 12) == _PROBE


def test_the_process_sleeps_while_every_descriptor_waits_to_be_passed_on(held):
    held.leave_descriptors(8)
    for _ in range(40):
        held.connect(_POST)
    used_s, begin_s = sum(held.process.cpu_times()), time.perf_counter()
    time.sleep(0.5)
    assert sum(held.process.cpu_times()) - used_s < 0.5 * (time.perf_counter() - begin_s)
    assert held.take(40) == [_POST] * 40
    assert _answer(held.connect(_PROBE)).startswith(b"HTTP/1.1 200 ")


def test_no_time_passes_while_the_process_itself_is_stopped():
    """As in a frozen container; an event loop that does not run grows older with each turn."""
    heartbeat = Heartbeat()
    now = time.monotonic()
    heartbeat.turn(now)
    heartbeat.turn(now + 1000.0)
    assert heartbeat.age_s(now + 1000.0) <= 2 * TURN_S
    for turn in range(100):
        heartbeat.turn(now + 1000.0 + turn * TURN_S)
    assert heartbeat.age_s(now + 1000.0 + 99 * TURN_S) >= 99 * TURN_S
