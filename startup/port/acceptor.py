"""Accepts connections for vLLM's HTTP server in the responder's process, and answers probes.

One request may block vLLM's event loop for a second. While the loop runs, vLLM regularly sends its answer to
`/health` to this process. This process sends the same answer to probes of `/health` and `/readyz`, and closes
their connections. Probes of `/livez` get 200. All other connections are passed on to vLLM.

This process peeks at a connection's bytes (MSG_PEEK), and consumes only the bytes of a probe that it answers.
vLLM reads all other bytes itself. Each connection is passed on in one message. While vLLM's loop is blocked,
the kernel queues up to about 550 of these messages. Further connections are still accepted, because probes
may be among them, and are passed on later.
"""

import errno
import json
import logging
import os
import resource
import selectors
import socket
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple, Protocol, Self

from startup.hook import uses
from startup.port.probe_http import LIVE_PATH, MAX_HEAD_BYTES, Answer, Probe, parse_probe

logger = logging.getLogger(__name__)

_SHARE_PERIOD_S: Final = 1.0
_MAX_SHARE: Final = 0.2
"""Maximum share of a processor at real-time priority. More would slow down the server's other processes."""
SERVE: Final = b"serve"
"""Message of the API process. From then on, the responder accepts for vLLM until the stream ends."""
BEAT: Final = b"beat "
"""Message of the API process: its event loop runs. vLLM's answer follows, if probes may get this answer."""
ACCEPTING: Final = b"accepting"
"""The reply to SERVE."""
CONNECTION: Final = b"connection"
"""Message to the API process with a connection. Any other message except ACCEPTING is an `AnsweredProbe`."""

STALE_S: Final = 2.0
"""Seconds without a heartbeat after which probes get 503."""
SILENT_S: Final = 0.05
"""Seconds after which a new connection that has sent nothing is passed on."""
TURN_S: Final = 0.5
"""Maximum time in seconds to wait for events."""
_RETRY_S: Final = 0.01
"""Seconds until the next try to send or accept, after the queue was full or no descriptor was free."""
_MAX_ACCEPTS_PER_TURN: Final = 16
_MAX_UNSENT: Final = 4096
_MAX_UNLOGGED: Final = 8192
"""Maximum number of answered probes that are not in the access log yet."""
_MAX_MESSAGE_BYTES: Final = 1 << 13
_SEND_BUFFER_BYTES: Final = 1 << 20
"""Size of the send buffer. The kernel reduces it to its maximum. A waiting connection takes 0.5 KB."""
_ALIVE: Final = Answer(200).encode()


class AnsweredProbe(NamedTuple):
    """The facts about a probe for the access log."""

    client: str
    """The client's address and port. Empty for a UNIX socket."""
    path: str
    http_version: str
    status: str

    def encode(self) -> bytes:
        return " ".join(self).encode()

    @classmethod
    def decode(cls, message: bytes) -> Self:
        return cls(*message.decode().split(" "))


class Leftover(Protocol):
    """A connection that was accepted before vLLM served. The selector has this object as the key's `data`."""

    def advance(self) -> None: ...
    def is_done_by(self, now: float) -> bool: ...


class Acceptor:
    """Accepts on the listener until the API process ends its stream."""

    def __init__(self, listener: socket.socket, api_process: socket.socket, selector: selectors.BaseSelector) -> None:
        """The listener and the connection to the API process must be registered with the selector."""
        self._listener = listener
        self._api_process = api_process
        self._selector = selector
        self._heartbeat = Heartbeat()
        self._priority = RealtimePriority(is_wanted=uses("real-time probes"))
        self._silent: dict[socket.socket, float] = {}
        """Connections that have sent nothing yet, oldest first, each with the time when it is passed on."""
        self._unsent: deque[socket.socket] = deque()
        """Connections for the API process, which cannot receive them at the moment."""
        self._unlogged: deque[AnsweredProbe] = deque(maxlen=_MAX_UNLOGGED)
        api_process.setblocking(False)
        api_process.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        _raise_file_limit()

    def run(self, leftovers: Sequence[Leftover]) -> None:
        """Runs until the API process exits, or ends its stream and has received all connections."""
        self._send(ACCEPTING)
        while self._turn(self._longest_wait_s(leftovers)):
            now = time.monotonic()
            leftovers = [connection for connection in leftovers if not connection.is_done_by(now)]
        self._give_all_back()

    def _longest_wait_s(self, leftovers: Sequence[Leftover]) -> float:
        if self._unsent or self._unlogged:
            return _RETRY_S
        return SILENT_S if self._silent or leftovers else TURN_S

    def _turn(self, timeout_s: float) -> bool:
        """Waits for events and processes them. Returns False when the API process's stream ends."""
        ready = self._selector.select(timeout_s)
        now = time.monotonic()
        self._heartbeat.turn(now)
        self._priority.turn(now)
        if any(key.fileobj is self._api_process for key, _ in ready) and not self._receive():
            return False
        for key, _ in ready:  # probes get the answer of the last heartbeat that was sent before
            if key.fileobj is self._listener:
                self._accept()
            elif key.data is not None:
                key.data.advance()
            elif key.fileobj in self._silent:  # not passed on by an earlier event of this turn
                self._inspect(key.fileobj)
        self._pass_silent_on(time.monotonic())
        self._send_unsent()
        return True

    def _receive(self) -> bool:
        message = self._api_process.recv(_MAX_MESSAGE_BYTES)
        if message.startswith(BEAT):
            self._heartbeat.receive(message.removeprefix(BEAT), time.monotonic())
        return bool(message)

    def _accept(self) -> None:
        if len(self._unsent) >= _MAX_UNSENT:
            time.sleep(_RETRY_S)
            return
        for _ in range(_MAX_ACCEPTS_PER_TURN):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # the client has reset it
                continue
            except OSError:  # no descriptor is free; raised even if no connection waits
                self._pass_silent_on(float("inf"))
                time.sleep(_RETRY_S)
                return
            self._inspect(connection)

    def _inspect(self, connection: socket.socket) -> None:
        """Answers a probe, keeps a connection that has sent nothing, and passes any other connection on."""
        try:
            received = connection.recv(MAX_HEAD_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            if connection not in self._silent:
                self._silent[connection] = time.monotonic() + SILENT_S
                self._selector.register(connection, selectors.EVENT_READ)
            return
        except OSError:
            received = b""
        self._stop_waiting(connection)
        try:
            is_for_vllm = bool(received) and not self._answer(connection, parse_probe(received))
        except Exception:  # an error of one connection must not end the process
            logger.exception("a connection is passed on unread")
            is_for_vllm = True
        if is_for_vllm:
            self._pass_on(connection)
        else:
            connection.close()

    def _answer(self, connection: socket.socket, probe: Probe | None) -> bool:
        """Answers a probe. Returns False if vLLM must serve the connection."""
        if probe is None:
            return False
        answer = _ALIVE if probe.path == LIVE_PATH else self._heartbeat.current_answer(time.monotonic())
        if not answer:
            return False
        with suppress(OSError):  # the client has gone
            address = connection.getpeername()
            connection.recv(MAX_HEAD_BYTES, socket.MSG_DONTWAIT)
            connection.send(answer, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            client = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else ""
            status = answer.split(b" ", 2)[1].decode()
            self._unlogged.append(AnsweredProbe(client, *probe, status))
        return True

    def _stop_waiting(self, connection: socket.socket) -> None:
        if self._silent.pop(connection, None) is not None:
            self._selector.unregister(connection)

    def _pass_silent_on(self, now: float) -> None:
        for connection in [each for each, deadline_s in self._silent.items() if deadline_s <= now]:
            self._stop_waiting(connection)
            self._pass_on(connection)

    def _pass_on(self, connection: socket.socket) -> None:
        """Sends the connection to vLLM. If earlier connections are still waiting, sends it after them."""
        self._unsent.append(connection)
        if len(self._unsent) == 1:
            self._send_unsent()

    def _send_unsent(self) -> None:
        while self._unsent and self._send(CONNECTION, self._unsent[0]):
            self._unsent.popleft().close()
        while self._unlogged and not self._unsent and self._send(self._unlogged[0].encode()):
            self._unlogged.popleft()

    def _send(self, message: bytes, *connections: socket.socket) -> bool:
        """Sends to the API process. Returns False if its queue is full at the moment."""
        try:
            socket.send_fds(self._api_process, [message], [connection.fileno() for connection in connections])
        except OSError as err:
            if err.errno in (errno.EAGAIN, errno.ETOOMANYREFS):  # or too many descriptors are under way
                return False
            raise
        return True

    def _give_all_back(self) -> None:
        self._listener.close()
        with suppress(OSError):  # the API process has exited
            self._api_process.setblocking(True)
            self._pass_silent_on(float("inf"))
            self._send_unsent()


class Heartbeat:
    """The last heartbeat that the API process has sent.

    Time does not count while the responder's process itself is stopped, for example in a frozen container.
    """

    def __init__(self) -> None:
        self._answer = b""
        self._received_s = self._turned_s = time.monotonic()

    def receive(self, answer: bytes, now: float) -> None:
        self._answer = answer
        self._received_s = now

    def current_answer(self, now: float) -> bytes:
        """The answer to a probe. Empty if vLLM must answer each probe itself."""
        age_s = now - self._received_s
        return _stale_answer(age_s) if age_s > STALE_S else self._answer

    def turn(self, now: float) -> None:
        """Called at least every `TURN_S` seconds. A longer pause means that this process was stopped."""
        pause_s = now - self._turned_s - TURN_S
        if pause_s > TURN_S:
            self._received_s = min(now, self._received_s + pause_s)
        self._turned_s = now


def _stale_answer(age_s: float) -> bytes:
    message = f"the event loop has not run for {age_s:.1f} s: it is blocked, or its own /health does not return"
    error = {"code": 503, "message": message, "type": "unavailable_error"}
    return Answer(503, json.dumps({"error": error}).encode()).encode()


def _raise_file_limit() -> None:
    """Raises the limit of open files. vLLM raises only the limit of its own process, and later."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class RealtimePriority:
    """Gives this process real-time priority while it needs little CPU time.

    Busy processes then do not delay the answers to probes. Without the capability CAP_SYS_NICE, nothing
    changes. Processes that this process forks do not have the priority.
    """

    def __init__(self, *, is_wanted: bool) -> None:
        self._is_possible = is_wanted
        self._is_on = False
        self._began_s = time.monotonic()
        self._used_s = time.process_time()
        self._set(True)

    def turn(self, now: float) -> None:
        """Called at least once per second."""
        if now - self._began_s < _SHARE_PERIOD_S:
            return
        used_s = time.process_time()
        self._set(used_s - self._used_s <= _MAX_SHARE * (now - self._began_s))
        self._began_s, self._used_s = now, used_s

    def _set(self, is_on: bool) -> None:
        if not self._is_possible or is_on == self._is_on:
            return
        policy, priority = (os.SCHED_FIFO, 1) if is_on else (os.SCHED_OTHER, 0)
        try:  # to undo SCHED_RESET_ON_FORK would need a privilege
            os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
        except OSError:  # not permitted
            self._is_possible = False
        self._is_on = is_on
