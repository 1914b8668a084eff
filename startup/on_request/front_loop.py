"""The front's connections: accepts, answers, holds, and passes on to the server that runs.

While the model is ready, this is the responder's `Acceptor`. Otherwise a request that the server must answer
is held: it is accepted and only peeked at. The server gets it once it is ready.
"""

import logging
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from startup.hooks.hook import uses
from startup.on_request.front_answers import FrontAnswers, Question
from startup.on_request.held_clients import MAX_HELD, HeldClients
from startup.probes.acceptor import TURN_S, Acceptor, Client, Heartbeat
from startup.probes.probe_http import MAX_HEAD_BYTES, Answer
from startup.probes.report_queue import ReportQueue
from startup.probes.responder_process import ProbeConnection
from startup.probes.serving_messages import (
    BEAT,
    GIVE,
    PAUSE,
    READY,
    RESUME,
    SERVE,
    STOPPING,
    Kind,
    Loan,
    Report,
    ServingSettings,
    read_answers,
)

logger = logging.getLogger(__name__)

_MAX_MESSAGE_BYTES: Final = 1 << 18
_MAX_WAITING: Final = 1024
"""Most connections on which no request has begun, and most that are being answered here."""
SHUTTING_DOWN: Final = "The server is shutting down"


_KEEP_ALIVE_S: Final = 5.0
"""How long a connection stays open after an answer, until the server sends its own settings."""


class Holding(NamedTuple):
    """What happens to requests that need a server."""

    wake: Callable[[], None]
    """Called for each; starts a server if there is none."""
    wait_s: float | None
    """How long a request may be held; None for no limit."""


class FrontLoop(Acceptor):
    """One loop for the front's whole life; servers come and go (`follow`, `unfollow`)."""

    _lends_duplicates = False

    def __init__(
        self,
        listener: socket.socket,
        link: socket.socket,
        selector: selectors.BaseSelector,
        answers: FrontAnswers,
        holding: "Holding",
    ) -> None:
        """
        Args:
            listener: the port.
            link: to the first server, which has been started.
            selector: watches the front's other descriptors, too; their data have a method `advance`.
            answers: what is answered without the server.
            holding: what happens to the other requests while there is none.
        """
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)
        selector.register(link, selectors.EVENT_READ)
        wants_realtime = uses("real-time probes")
        settings = ServingSettings(keep_alive_s=_KEEP_ALIVE_S, reports_probes=False, wants_realtime=wants_realtime)
        super().__init__(listener, link, selector, settings)
        self._reports = _ServerReports(link, selector)
        self._model = answers.model
        self._answers = answers
        self._wake = holding.wake
        self._held = HeldClients(selector, holding.wait_s)
        self._answering: list[ProbeConnection] = []
        """Connections that this process answers; they are closed afterwards."""
        self._is_following = True
        self.is_ending = False
        """Whether the front was told to end: nothing is held any more."""

    @property
    def num_held(self) -> int:
        """How many requests wait for the server."""
        return len(self._held)

    def turn(self) -> None:
        """Waits for events, for half a second at most, and processes them."""
        self._turn(TURN_S)
        now = time.monotonic()
        self._answering = [connection for connection in self._answering if not connection.is_done_by(now)]
        for client in self._held.take_expired(now):
            self._reject(client, self._answers.unavailable("The model did not start in time", status=504))

    def follow(self, link: socket.socket) -> None:
        """Another server was started."""
        self._selector.register(link, selectors.EVENT_READ)
        self._reports = _ServerReports(link, self._selector)
        self._heartbeat = Heartbeat()
        self._is_following = True

    def unfollow(self) -> None:
        """The server has ended: reads its last messages, and takes back what it has not received."""
        while self._is_following and self._has_message():
            self._receive()
        self._unlink()
        self._take_back()

    def release(self) -> None:
        """Passes on what is held, if the model is ready; otherwise looks at it again."""
        for client in self._held.take_all():
            if self._model.state == "ready":
                self._pass_on(client)
            else:
                self._inspect(client)

    def reject_held(self, message: str) -> None:
        """Answers all that are held with 503."""
        for client in self._held.take_all():
            self._reject(client, self._answers.unavailable(message))

    def close(self) -> None:
        """Answers those that wait to be accepted, too, and closes the port once all answers are read."""
        self.is_ending = True
        self.reject_held(SHUTTING_DOWN)
        self._accept()
        self._listener.close()
        end_s = time.monotonic() + 1.0
        while self._answering and time.monotonic() < end_s:
            for key, _ in self._selector.select(0.05):
                if isinstance(key.data, ProbeConnection):
                    key.data.advance()
            self._answering = [each for each in self._answering if not each.is_done_by(time.monotonic())]

    def _receive(self) -> bool:
        """Processes a message of the server; always true, as the front outlives it."""
        link = self._reports.api_process
        try:
            message, fds, _, _ = socket.recv_fds(link, _MAX_MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:  # it was killed before it read everything; its last messages come next
            return True
        if message:
            self._follow_message(message, fds)
        else:
            self._unlink()
        return True

    def _follow_message(self, message: bytes, fds: list[int]) -> None:
        now = time.monotonic()
        if message.startswith(BEAT):
            self._note_beat(message)
        elif message.startswith(GIVE):
            self._take_given(Loan.decode(message.removeprefix(GIVE)), fds)
        elif message.startswith(SERVE):
            self._settings = ServingSettings.decode(message)
        elif message == READY:
            self._model.become_ready(now)
            self.release()
        elif message == PAUSE:
            self._model.pause(now)
            self._take_back()
            self._reports.send(Report(Kind.PAUSED))
        elif message == RESUME:
            self._model.resume(now)
            self.release()
        elif message == STOPPING and fds:
            self._answers.last = read_answers(fds[0])
            self._model.begin_stop(now)
            self.release()
        elif message.startswith(b"{"):
            self._answers.follow(message)

    def _has_message(self) -> bool:
        for _ in range(2):  # a server that was killed before it read everything leaves an error, and its messages
            with suppress(OSError):
                self._reports.api_process.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                return True
        return False

    def _unlink(self) -> None:
        """No message comes any more; the end of the process is noticed elsewhere."""
        if self._is_following:
            self._is_following = False
            self._selector.unregister(self._reports.api_process)

    def _take_back(self) -> None:
        clients = [self._client(connection, "") for connection in self._reports.take_back()]
        self._held.put_first(clients, time.monotonic())

    def _take_given(self, loan: Loan, fds: list[int]) -> None:
        """A connection on which the client may send another request."""
        for fd in fds:
            self._wait(self._client(socket.socket(fileno=fd), loan.client), self._answered, self._settings.keep_alive_s)

    def _client(self, connection: socket.socket, address: str) -> Client:
        self._num_accepted += 1
        return Client(self._num_accepted, connection, address)

    def _process(self, client: Client, received: bytes) -> None:
        question = Question.read(received)
        answer = self._answers.find(question) if question is not None else None
        if answer is None:
            answer = self._answers.find_rejection(received)
        is_head = b"\r\n\r\n" in received or len(received) >= MAX_HEAD_BYTES
        if answer is not None:
            self._reject(client, answer)
        elif is_head or not self._model.may_start(time.monotonic()):
            super()._process(client, received)
        else:
            self._wait_for_head(client, len(received))

    def _wait_for_head(self, client: Client, num_bytes: int) -> None:
        """A part of a head does not start the model: waits until there are more unread bytes."""
        connection = client.connection
        if connection.family == socket.AF_UNIX:  # the kernel reports unread bytes however few they are
            self._hold(client)
        elif num_bytes < connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT):  # no more will come
            self._close(client)
        else:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, num_bytes + 1)
            self._wait(client, self._answered, self._settings.keep_alive_s)

    def _stop_waiting(self, client: Client) -> None:
        super()._stop_waiting(client)
        client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _answer_probe(self, probe: Any) -> tuple[int, bytes] | None:
        return super()._answer_probe(probe) if self._model.state in ("ready", "paused") else None

    def _pass_on(self, client: Client) -> None:
        if self._model.state == "ready":
            if client.is_waiting:
                self._stop_waiting(client)
            self._reports.send(Report(Kind.TAKE, client.id), client.connection)
        else:
            self._hold(client)

    def _hold(self, client: Client) -> None:
        now = time.monotonic()
        if self.is_ending:
            self._reject(client, self._answers.unavailable(SHUTTING_DOWN))
        elif self._model.state == "failed" and not self._model.may_start(now):
            self._reject(client, self._answers.unavailable(self._model.reason))
        elif len(self._held) >= MAX_HELD:
            self._reject(client, self._answers.unavailable(f"{MAX_HELD} requests wait for the model already"))
        else:
            if client.is_waiting:
                self._stop_waiting(client)
            self._held.add(client, now)
            self._wake()

    def _reject(self, client: Client, answer: Answer) -> None:
        """Answers a client here, once its whole request has come."""
        if client.is_waiting:
            self._stop_waiting(client)
        if len(self._answering) >= _MAX_WAITING:
            self._answering.pop(0).close()
        connection = ProbeConnection(client.connection, self._selector, lambda _: answer)
        self._answering.append(connection)
        connection.advance()

    def _pass_silent_on(self, now: float) -> None:
        """Connections on which nothing has come wait here, so that they keep no server from being stopped."""

    def _limit_waiting(self) -> None:
        for clients in (self._silent, self._answered):
            if len(clients) > _MAX_WAITING:
                self._close(next(iter(clients.values())))

    def _close_one(self) -> bool:
        for clients in (self._answered, self._silent):
            if clients:
                self._close(next(iter(clients.values())))
                return True
        return False

    def _report_probes(self) -> None:
        if self._is_following:
            super()._report_probes()
        else:
            self._unlogged.clear()


class _ServerReports(ReportQueue):
    """To a server that may have ended: what it does not receive is taken back."""

    def try_send(self, report: Report, connection: socket.socket | None = None) -> bool:
        try:
            return super().try_send(report, connection)
        except OSError:  # it has ended
            return False

    def _follow(self) -> None:
        with suppress(KeyError, ValueError):  # it has ended, and is not watched any more
            super()._follow()
