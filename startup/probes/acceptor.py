"""Accepts for the HTTP server, in the responder's process: answers probes, passes on all else.

The HTTP server's event loop may be held for a second by one request. Its answer to `/health` is sent here, as
long as the loop runs.

The bytes of a connection are peeked at (MSG_PEEK): only those of an answered probe are consumed, and the
HTTP server reads all others itself. Every connection that waits here is held by the API process too: at most
one connection is lost if this process is killed. If the loop is held so long that the kernel keeps no more
messages for it, about 550, further connections are accepted all the same, as probes may be among them, and
are passed on later.

An HTTP server may accept, too (`accept_delay_s`): then only connections that have waited for so long are
accepted here, and it lends connections on which there were only probes.
"""

import json
import resource
import selectors
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Protocol

from base.machine.realtime import RealtimePriority
from startup.probes.probe_http import MAX_HEAD_BYTES, Answer, ProbeRequest, parse_probe
from startup.probes.report_queue import ReportQueue
from startup.probes.serving_messages import (
    BEAT,
    LEND,
    AnsweredProbe,
    HealthAnswer,
    Kind,
    Loan,
    Report,
    ServingSettings,
)

STALE_S: Final = 2.0
"""After this time without a heartbeat, the answer is 503."""
_SILENT_S: Final = 0.05
"""How long a new connection may send nothing before it is passed on."""
TURN_S: Final = 0.5
"""The longest wait for events."""
_FIRST_BYTES_S: Final = 0.0001
"""A client's first bytes follow its connection so soon; without bytes, it costs one more message."""
_MAX_ACCEPTS_PER_TURN: Final = 16
_PAUSE_S: Final = 0.1
"""How long nothing is accepted if no file descriptor is free, or too much waits to be sent."""
_MAX_UNSENT: Final = 4096
_MAX_DELAY_FACTOR: Final = 16
"""How much longer connections wait for the HTTP server while no probe is among those accepted here."""
_MAX_KEPT: Final = 128
"""Most clients that wait here after an answer, as the API process holds a descriptor of each."""
_MAX_UNLOGGED: Final = 8192
"""Answered probes kept for the access log meanwhile."""
_MAX_MESSAGE_BYTES: Final = 1 << 16


class Leftover(Protocol):
    """A connection accepted before the HTTP server served; registered with the selector."""

    def advance(self) -> None: ...
    def is_done_by(self, now: float) -> bool: ...


class Acceptor:
    """Owns the listener until the API process takes it back."""

    def __init__(
        self,
        listener: socket.socket,
        api_process: socket.socket,
        selector: selectors.BaseSelector,
        settings: ServingSettings,
    ) -> None:
        """Listener and connection to the API process are registered with the selector."""
        self._listener = listener
        self._reports = ReportQueue(api_process, selector)
        self._selector = selector
        self._settings = settings
        self._heartbeat = Heartbeat()
        self._priority = RealtimePriority(is_wanted=settings.wants_realtime)
        self._unlogged: deque[AnsweredProbe] = deque(maxlen=_MAX_UNLOGGED)
        self._delay_s = settings.accept_delay_s
        self._accepts_from_s = 0.0
        """Until then, the listener is not registered with the selector."""
        self._silent: OrderedDict[int, Client] = OrderedDict()
        """Clients that have sent nothing yet, oldest first."""
        self._answered: OrderedDict[int, Client] = OrderedDict()
        """Clients whose last probe was answered, oldest answer first."""
        self._num_accepted = 0
        self._hand_over = b""
        """The message with which the API process takes all connections back."""
        _raise_file_limit()

    def run(self, leftovers: Sequence[Leftover], hand_over: bytes) -> None:
        """Returns once the API process has sent `hand_over` and has got all connections, or has exited."""
        self._hand_over = hand_over
        while self._turn(_SILENT_S if self._silent or leftovers else TURN_S):
            now = time.monotonic()
            leftovers = [connection for connection in leftovers if not connection.is_done_by(now)]

    def _turn(self, timeout_s: float) -> bool:
        """Waits for events and processes them; False if there will be no more."""
        ready = self._selector.select(self._until_accepting(timeout_s))
        now = time.monotonic()
        self._heartbeat.turn(now)
        self._priority.turn(now)
        self._resume_accepting(now)
        for key, events in ready:
            if key.fileobj is self._listener:
                self._notice_connection()
            elif key.fileobj is self._reports.api_process:
                if events & selectors.EVENT_WRITE:
                    self._reports.send_unsent()
                if events & selectors.EVENT_READ and not self._receive():
                    return False
            elif not isinstance(key.data, Client):
                key.data.advance()
            elif key.data.is_waiting:  # not passed on by an earlier event of this turn
                self._inspect(key.data)
        now = time.monotonic()
        self._pass_silent_on(now)
        self._close_idle(now)
        self._report_probes()
        return True

    def _receive(self) -> bool:
        """Processes a message; False if there will be no more."""
        link = self._reports.api_process
        message, fds, _, _ = socket.recv_fds(link, _MAX_MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        if message.startswith(LEND):
            self._borrow(Loan.decode(message), fds)
        elif message.startswith(BEAT):
            self._note_beat(message)
        elif message == self._hand_over:
            self._give_all_back()
            return False
        return bool(message)

    def _note_beat(self, message: bytes) -> None:
        self._heartbeat.receive(HealthAnswer.decode(message), time.monotonic())
        self._reports.note_beat()
        self._reports.send(Report(Kind.ECHO))

    def _give_all_back(self) -> None:
        self._listener.close()
        with suppress(OSError):  # the API process has exited
            self._reports.send_all()
            for client in (*self._silent.values(), *self._answered.values()):
                self._pass_on(client)
            self._report_probes()

    def _notice_connection(self) -> None:
        if self._delay_s:
            self._pause_accepting(self._delay_s)
        else:
            self._accept()

    def _borrow(self, loan: Loan, fds: list[int]) -> None:
        if not fds:  # no free descriptor
            self._reports.send(Report(Kind.TAKE, loan.connection_id))
            return
        client = Client(loan.connection_id, socket.socket(fileno=fds[0]), loan.client)
        client.is_held = True
        self._wait(client, self._answered, self._settings.keep_alive_s)

    def _accept(self) -> None:
        if len(self._reports) >= _MAX_UNSENT:
            self._pause_accepting(_PAUSE_S)
            return
        for _ in range(_MAX_ACCEPTS_PER_TURN):
            try:
                connection, address = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # the client has reset it
                continue
            except OSError:  # no free descriptor, even if no connection waits
                if not self._delay_s and not self._close_one():
                    self._pause_accepting(_PAUSE_S)
                return
            self._num_accepted += 1
            client = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else ""
            self._inspect(Client(self._num_accepted, connection, client))

    def _close_one(self) -> bool:
        """Frees a descriptor; False if every connection here waits to be passed on."""
        if self._answered:
            self._close(next(iter(self._answered.values())))
            return True
        self._pass_silent_on(now=float("inf"))
        return not self._reports

    def _pause_accepting(self, duration_s: float) -> None:
        self._selector.unregister(self._listener)
        self._accepts_from_s = time.monotonic() + duration_s

    def _until_accepting(self, timeout_s: float) -> float:
        """The timeout, or less if accepting is to be resumed before."""
        if not self._accepts_from_s:
            return timeout_s
        return min(timeout_s, max(0.0, self._accepts_from_s - time.monotonic()))

    def _resume_accepting(self, now: float) -> None:
        if self._accepts_from_s and self._accepts_from_s <= now:
            self._accepts_from_s = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)
            if self._delay_s:
                self._delay_s = min(2 * self._delay_s, _MAX_DELAY_FACTOR * self._settings.accept_delay_s)
                self._accept()  # what the HTTP server has not accepted meanwhile

    def _inspect(self, client: "Client") -> None:
        """Answers a probe; keeps a connection without bytes; passes any other one on."""
        try:
            received = peek(client.connection, may_wait=not client.is_waiting)
        except BlockingIOError:
            if not client.is_waiting:
                self._wait(client, self._silent, _SILENT_S)
            return
        except OSError:
            received = b""
        if not received:
            self._close(client)
        else:
            self._process(client, received)

    def _process(self, client: "Client", received: bytes) -> None:
        """The client has sent the beginning of a request, which was only peeked at."""
        probe = parse_probe(received, self._settings.paths)
        answer = self._answer_probe(probe) if probe is not None else None
        if probe is None or answer is None or not self._send_answer(client, probe, *answer):
            self._pass_on(client)

    def _answer_probe(self, probe: ProbeRequest) -> tuple[int, bytes] | None:
        """Status and bytes; None if the HTTP server has to answer."""
        if (age_s := self._heartbeat.age_s(time.monotonic())) > STALE_S:
            return 503, _stale_answer(age_s).encode()
        answer = self._heartbeat.answer
        return None if answer is None else (answer.status, answer.response(keeps_alive=probe.keeps_alive))

    def _send_answer(self, client: "Client", probe: ProbeRequest, status: int, answer: bytes) -> bool:
        """False if the client does not read. The probe is consumed last: until then it could be passed on."""
        try:
            num_sent = client.connection.send(answer, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            client.connection.recv(probe.num_bytes, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            num_sent = 0
        if not client.is_waiting:
            self._delay_s = self._settings.accept_delay_s
        if self._settings.reports_probes and num_sent:
            self._unlogged.append(AnsweredProbe(client.address, probe.path, probe.http_version, status))
        if num_sent < len(answer) or not probe.keeps_alive or b"\r\nConnection: close\r\n" in answer:
            self._close(client)
        else:
            self._wait(client, self._answered, self._settings.keep_alive_s)
        return True

    def _wait(self, client: "Client", clients: "OrderedDict[int, Client]", timeout_s: float) -> None:
        """Waits for the client's next bytes; the API process holds the connection meanwhile, if it can."""
        if not client.is_waiting:
            if not client.is_held and not self._reports:
                client.is_held = self._reports.try_send(Report(Kind.HOLD, client.id), client.connection)
            client.is_waiting = True
            self._selector.register(client.connection, selectors.EVENT_READ, client)
        client.deadline_s = time.monotonic() + timeout_s
        self._silent.pop(client.id, None)
        clients[client.id] = client
        clients.move_to_end(client.id)
        if len(self._answered) > _MAX_KEPT:
            self._pass_on(next(iter(self._answered.values())))

    def _pass_on(self, client: "Client") -> None:
        """The HTTP server serves the connection from now on."""
        if client.is_waiting:
            self._stop_waiting(client)
        if client.is_held:
            client.connection.close()
            self._reports.send(Report(Kind.TAKE, client.id))
        else:
            self._reports.send(Report(Kind.TAKE, client.id), client.connection)

    def _close(self, client: "Client") -> None:
        if client.is_waiting:
            self._stop_waiting(client)
        if client.is_held:
            with suppress(OSError):  # the API process's duplicate would keep it open
                client.connection.shutdown(socket.SHUT_RDWR)
            self._reports.send(Report(Kind.DROP, client.id))
        client.connection.close()

    def _stop_waiting(self, client: "Client") -> None:
        client.is_waiting = False
        self._selector.unregister(client.connection)
        self._silent.pop(client.id, None)
        self._answered.pop(client.id, None)

    def _pass_silent_on(self, now: float) -> None:
        while self._silent and (client := next(iter(self._silent.values()))).deadline_s <= now:
            self._pass_on(client)

    def _close_idle(self, now: float) -> None:
        while self._answered and (client := next(iter(self._answered.values()))).deadline_s <= now:
            self._close(client)

    def _report_probes(self) -> None:
        """Sends answered probes for the access log; later, if the API process receives nothing."""
        while self._unlogged and not self._reports:
            if not self._reports.try_send(Report(Kind.ANSWERED, probe=self._unlogged[0])):
                return
            self._unlogged.popleft()


def peek(connection: socket.socket, *, may_wait: bool) -> bytes:
    """The first bytes, which stay unread; BlockingIOError without any."""
    try:
        return connection.recv(MAX_HEAD_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        if not may_wait:
            raise
    time.sleep(_FIRST_BYTES_S)
    return connection.recv(MAX_HEAD_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)


class Client:
    """A connection on which no request has begun that was passed on to the HTTP server."""

    __slots__ = ("address", "connection", "deadline_s", "id", "is_held", "is_waiting")

    def __init__(self, connection_id: int, connection: socket.socket, address: str) -> None:
        self.id = connection_id
        self.connection = connection
        self.address = address
        self.deadline_s = 0.0
        self.is_waiting = False
        """Whether it is registered with the selector."""
        self.is_held = False
        """Whether the API process holds a duplicate."""


class Heartbeat:
    """The API process's last heartbeat.

    While this process itself is stopped (a frozen container), no time passes here.
    """

    def __init__(self) -> None:
        self.answer: HealthAnswer | None = None
        self._received_s = self._turned_s = time.monotonic()

    def receive(self, answer: HealthAnswer | None, now: float) -> None:
        self.answer = answer
        self._received_s = now

    def age_s(self, now: float) -> float:
        return now - self._received_s

    def turn(self, now: float) -> None:
        """Called at least every `TURN_S`."""
        pause_s = now - self._turned_s - TURN_S
        if pause_s > TURN_S:
            self._received_s = min(now, self._received_s + pause_s)
        self._turned_s = now


def _stale_answer(age_s: float) -> Answer:
    message = f"the event loop has not run for {age_s:.1f} s: it is blocked, or its own /health does not return"
    error = {"code": 503, "message": message, "type": "unavailable_error"}
    return Answer(503, json.dumps({"error": error}).encode())


def _raise_file_limit() -> None:
    """vLLM raises its own limit after this process was forked."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
