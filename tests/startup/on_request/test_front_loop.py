"""The front's connections, in the test's process: real sockets, and a server that the test plays."""

import selectors
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from startup.on_request import front_loop
from startup.on_request.front_answers import FrontAnswers
from startup.on_request.front_keys import FrontKeys
from startup.on_request.front_loop import FrontLoop, Holding
from startup.on_request.model_state import ModelState
from startup.probes import acceptor
from startup.probes.listener import listen
from startup.probes.serving_messages import (
    GIVE,
    PAUSE,
    READY,
    RESUME,
    STOPPING,
    HealthAnswer,
    Kind,
    LastAnswer,
    Loan,
    Report,
    write_answers,
)

POST = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nContent-Length: 0\r\n\r\n"
HEALTHY = HealthAnswer(200, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n", b"")


class _Front:
    """A front whose loop the test turns, and its server's end of the link."""

    def __init__(self, stack: ExitStack, wait_s: float | None) -> None:
        self._stack = stack
        self._listener = stack.enter_context(listen(host="127.0.0.1", port=0, uds=None))
        self._address = self._listener.getsockname()
        self._selector = stack.enter_context(selectors.DefaultSelector())
        self.model = ModelState(0.0)
        self.num_wakes = 0
        answers = FrontAnswers(self.model, "m", dict, FrontKeys(["secret"]), is_private=False)
        self.server, link = self._pair()
        self.loop = FrontLoop(self._listener, link, self._selector, answers, Holding(self._wake, wait_s))
        stack.callback(self._close)

    def _pair(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(0)
        return self._stack.enter_context(ours), self._stack.enter_context(theirs)

    def _close(self) -> None:
        self.loop.reject_held("over")
        self.loop.close()

    def _wake(self) -> None:
        if self.model.may_start(0.0):
            self.num_wakes += 1
            self.model.wake(0.0)
            self.server, link = self._pair()
            self.loop.follow(link)

    def turn(self, number: int = 3) -> None:
        for _ in range(number):
            self.loop.turn()

    def tell(self, message: bytes, *fds: int) -> None:
        """A message of the server."""
        socket.send_fds(self.server, [message], fds)
        self.turn()

    def be_ready(self) -> None:
        self.tell(READY)
        self.tell(HEALTHY.encode())
        assert self.reports(Kind.ECHO) == []

    def stop(self) -> None:
        """The server ends because it is idle."""
        self.tell(PAUSE)
        self.tell(STOPPING, write_answers({"/metrics": LastAnswer("text/plain", b"last 1\n")}))
        self.end("")

    def end(self, reason: str) -> None:
        self.server.close()
        self.loop.unfollow()
        self.model.end(reason, 0.0)

    def connect(self, request: bytes = POST) -> socket.socket:
        client = self._stack.enter_context(socket.create_connection(self._address, timeout=60))
        client.sendall(request)
        self.turn()
        return client

    def get(self, path: str) -> bytes:
        client = self.connect(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        return client.recv(1 << 16)

    def reports(self, kind: Kind) -> list[socket.socket]:
        """Reads all messages to the server, of which the last one has this kind; returns the connections."""
        found: list[socket.socket] = []
        last: Report | None = None
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(self.server, 1 << 12, 1)
            except BlockingIOError:
                assert last is not None
                assert last.kind is kind
                return found
            last = Report.decode(message)
            found += [self._stack.enter_context(socket.socket(fileno=fd)) for fd in fds]

    def taken(self) -> list[bytes]:
        """The first bytes of the connections that the server was passed, in their order."""
        return [connection.recv(1 << 12) for connection in self.reports(Kind.TAKE)]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def front(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> _Front:
    monkeypatch.setenv("VCLI_LEAVE_OUT", "real-time probes")
    monkeypatch.setattr(front_loop, "TURN_S", 0.02)
    monkeypatch.setattr(acceptor, "_raise_file_limit", lambda: None)
    return _Front(stack, None)


def _request(number: int) -> bytes:
    return POST.replace(b"Host: a", b"Host: %d" % number)


def test_requests_wait_for_the_model_and_are_passed_on_in_order(front: _Front) -> None:
    for number in range(5):
        front.connect(_request(number))
    assert front.loop.num_held == 5
    front.tell(READY)
    assert front.taken() == [_request(number) for number in range(5)]


def test_a_ready_server_gets_requests_at_once_and_no_probe(front: _Front) -> None:
    front.be_ready()
    front.connect()
    assert front.taken() == [POST]
    assert front.get("/health").startswith(b"HTTP/1.1 200 OK")
    assert front.get("/readyz?model").endswith(b'{"status": "ready"}')


def test_a_silent_connection_waits_in_the_front(front: _Front) -> None:
    front.be_ready()
    client = front.connect(b"")
    front.turn(10)
    client.sendall(POST)
    front.turn()
    assert front.taken() == [POST]


def test_a_pause_is_confirmed_after_all_connections_before_it(front: _Front) -> None:
    front.be_ready()
    front.connect(_request(1))
    front.tell(PAUSE)
    front.connect(_request(2))
    assert [connection.recv(1 << 12) for connection in front.reports(Kind.PAUSED)] == [_request(1)]
    assert front.loop.num_held == 1
    front.tell(RESUME)
    assert front.taken() == [_request(2)]


def test_a_request_wakes_a_stopped_model_once(front: _Front) -> None:
    front.be_ready()
    front.stop()
    assert front.model.state == "stopped"
    for number in range(3):
        front.connect(_request(number))
    assert (front.num_wakes, front.loop.num_held) == (1, 3)
    front.tell(READY)
    assert front.taken() == [_request(number) for number in range(3)]


def test_a_request_without_a_valid_key_does_not_wake_a_stopped_model(front: _Front) -> None:
    front.be_ready()
    front.stop()
    for key in (b"other", b""):
        assert front.connect(POST.replace(b"secret", key)).recv(1 << 12).startswith(b"HTTP/1.1 401 Unauthorized\r\n")
    assert (front.num_wakes, front.loop.num_held) == (0, 0)
    front.connect()
    assert front.num_wakes == 1


@pytest.mark.parametrize(
    ("parts", "answer", "num_wakes"),
    [
        ([b"\x16\x03\x01\x02\x00\x01"], b"", 0),
        ([POST[:-20]], b"", 0),
        ([b"GET /hea", b"lth HTTP/1.1\r\n", b"Host: a\r\n\r\n"], b"HTTP/1.1 200 OK\r\n", 0),
        ([POST[:9], POST[9:-2].replace(b"secret", b"other"), b"\r\n"], b"HTTP/1.1 401 Unauthorized\r\n", 0),
        ([POST[:9], POST[9:-2], b"\r\n"], None, 1),
        ([POST[:9], b"x" * 4096], None, 1),
    ],
    ids=["hello of TLS", "half a head", "probe", "without a valid key", "with a key", "too long"],
)
def test_the_head_of_a_request_that_comes_in_parts_is_complete_before_it_wakes_a_model(
    front: _Front, parts: list[bytes], answer: bytes | None, num_wakes: int
) -> None:
    front.be_ready()
    front.stop()
    first, *others = parts
    client = front.connect(first)
    for part in others:
        assert front.num_wakes == 0
        client.sendall(part)
        front.turn()
    assert (front.num_wakes, front.loop.num_held) == (num_wakes, num_wakes)
    if answer is None:
        front.tell(READY)
        assert front.taken() == [b"".join(parts)[:4096]]
    elif answer:
        assert client.recv(1 << 12).startswith(answer)
    else:
        client.shutdown(socket.SHUT_WR)
        front.turn()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_client_that_does_not_complete_a_head_is_closed(front: _Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front.loop, "_settings", replace(front.loop._settings, keep_alive_s=0.1))
    front.be_ready()
    front.stop()
    client = front.connect(POST[:-20])
    front.turn(10)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert front.num_wakes == 0


def test_no_probe_and_no_report_wakes_a_stopped_model(front: _Front) -> None:
    front.be_ready()
    front.stop()
    for path in ("/health", "/ping", "/livez", "/readyz", "/readyz?model", "/", "/status.json", "/startupz"):
        assert front.get(path).startswith(b"HTTP/1.1 503" if "?" in path else b"HTTP/1.1 200")
    assert b"last 1" in front.get("/metrics")
    assert (front.num_wakes, front.model.state) == (0, "stopped")


def test_a_request_that_comes_while_the_server_ends_starts_the_next_one(front: _Front) -> None:
    front.be_ready()
    front.tell(PAUSE)
    front.connect()
    front.tell(STOPPING, write_answers({}))
    assert (front.num_wakes, front.loop.num_held) == (0, 1)
    front.end("")
    front.loop.release()
    assert (front.num_wakes, front.model.state) == (1, "starting")
    front.tell(READY)
    assert front.taken() == [POST]


def test_a_connection_that_the_server_gives_back_keeps_its_next_request(front: _Front, stack: ExitStack) -> None:
    front.be_ready()
    client = front.connect()
    [connection] = front.reports(Kind.TAKE)
    connection.recv(1 << 12)
    front.tell(PAUSE)
    front.tell(GIVE + Loan(0, "").encode(), connection.fileno())
    connection.close()
    front.tell(STOPPING, write_answers({}))
    front.end("")
    client.sendall(_request(2))
    front.turn()
    front.tell(READY)
    assert front.taken() == [_request(2)]
    assert front.num_wakes == 1


def test_a_client_that_leaves_is_forgotten(front: _Front) -> None:
    staying, leaving = front.connect(_request(1)), front.connect(_request(2))
    leaving.close()
    front.turn()
    assert front.loop.num_held == 1
    front.tell(READY)
    assert front.taken() == [_request(1)]
    staying.close()


def test_after_a_failure_requests_are_rejected_with_its_reason(front: _Front) -> None:
    front.be_ready()
    front.end("the engine died")
    front.model._retry_s = 1e9
    answer = front.connect().recv(1 << 12)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"the engine died" in answer
    assert b"Retry-After: " in answer


def test_held_requests_are_rejected_when_the_start_fails(front: _Front) -> None:
    client = front.connect()
    front.loop.reject_held("no such model")
    assert b"no such model" in client.recv(1 << 12)
    assert front.loop.num_held == 0


def test_a_request_waits_for_a_limited_time(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCLI_LEAVE_OUT", "real-time probes")
    monkeypatch.setattr(front_loop, "TURN_S", 0.02)
    monkeypatch.setattr(acceptor, "_raise_file_limit", lambda: None)
    front = _Front(stack, 0.01)
    client = front.connect()
    front.turn()
    assert client.recv(1 << 12).startswith(b"HTTP/1.1 504 Gateway Timeout")


def test_the_last_messages_of_a_killed_server_count(front: _Front) -> None:
    """It has not read all that it was sent, which the kernel reports before its messages."""
    front.tell(HEALTHY.encode())
    front.server.send(b'{"timeline": 1}')
    seen: list[bytes] = []
    front.loop._answers.follow = seen.append  # type: ignore[method-assign]
    front.end("killed")
    assert seen == [b'{"timeline": 1}']


def test_no_more_than_a_limit_of_requests_is_held(front: _Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_loop, "MAX_HELD", 2)
    clients = [front.connect(_request(number)) for number in range(3)]
    assert clients[2].recv(1 << 12).startswith(b"HTTP/1.1 503 ")
    front.tell(READY)
    assert front.taken() == [_request(0), _request(1)]


def test_what_a_killed_server_has_not_received_is_taken_back(front: _Front) -> None:
    """The kernel keeps some hundred messages for a server that does not run; more wait in the front."""
    front.be_ready()
    clients = [front.connect(_request(number)) for number in range(3)]
    front.loop._reports.try_send = lambda *_: False  # type: ignore[assignment,method-assign]
    late = [front.connect(_request(number)) for number in (3, 4)]
    front.end("killed")
    assert front.loop.num_held == 2
    front.loop.reject_held("killed")
    assert all(b"killed" in client.recv(1 << 12) for client in late)
    assert len(clients) == 3
