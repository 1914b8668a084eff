"""Answers probes truthfully from the first moment, on the server's own socket, until the HTTP server takes it over.

A process of standard-library code, forked before anything is imported: imports and tokenizers hold the interpreter of
the API process for 60 ms and more at a time, and a thread of it would be silent for as long. It handles all
connections without blocking, so that a slow client holds up nobody.
"""

import logging
import os
import resource
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import NoReturn, Protocol, Self

from server.errors import ServerError
from startup.logs.setup import rename_process
from startup.processes import death_pipe, group_signals

logger = logging.getLogger(__name__)

_MAX_REQUEST_BYTES = 1 << 20
_MOST_CONNECTIONS = 1024
_CONNECTION_S = 10.0
"""After this a connection is closed whatever it waits for."""
_END_S = 5.0
"""How long a process may take to end that has nothing left to do, or was killed."""
_GIVE_UP_S = 5.0
"""How long the HTTP server waits for the process to stop accepting; it is a matter of microseconds."""
_POLL_S = 0.01
_CHUNK_BYTES = 1 << 16
_MAX_MESSAGE_BYTES = 1 << 20
_HAND_OVER = b"hand over"
_GIVEN_UP = b"given up"


@dataclass(frozen=True)
class Answer:
    """What a path answers."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    retry_after_s: int | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        """The whole HTTP/1.1 response; the connection is closed behind it."""
        head = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}", f"Content-Length: {len(self.body)}"]
        if self.body:
            head.append(f"Content-Type: {self.content_type}")
        if self.retry_after_s is not None:
            head.append(f"Retry-After: {self.retry_after_s}")
        head += (f"{name}: {value}" for name, value in self.headers)
        head.append("Connection: close")
        return "\r\n".join([*head, "", ""]).encode() + self.body


class Answers(Protocol):
    """What the process knows; it has its own copy, which is told what changes."""

    def answer(self, path: str) -> Answer:
        """What a path answers now."""

    def follow(self, snapshot: bytes) -> None:
        """Takes over what the API process knows by now."""


class Channel(Protocol):
    """A client's connection, which does not block: a socket, or TLS on one (`startup.probes.tls_channel`)."""

    def fileno(self) -> int: ...
    def setblocking(self, is_blocking: bool, /) -> None: ...
    def recv(self, num_bytes: int, /) -> bytes: ...
    def send(self, data: bytes, /) -> int: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


OpenChannel = Callable[[socket.socket], Channel]
"""Makes what is read and written of an accepted socket; an OSError refuses the client."""


def open_plain() -> OpenChannel:
    """Channels without TLS: the sockets themselves."""
    return lambda client: client


class StartupResponder:
    """Serves `answers` on a listening socket between `start` and `hand_over`, in a process of its own."""

    def __init__(
        self, listener: socket.socket, answers: Answers, prepare_channels: Callable[[], OpenChannel] = open_plain
    ) -> None:
        """`prepare_channels` is called in the process, so that what TLS imports delays nobody else."""
        self._listener = listener
        self._answers = answers
        self._prepare_channels = prepare_channels
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._life_fd: int | None = None
        """Write end of the process's death pipe."""
        self._pid: int | None = None
        self._is_handed_over = False
        self._is_lost = False
        self._has_given_up = threading.Event()
        """The process accepts no more, as far as it can be known."""
        self._waiting = threading.Lock()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Begins to accept; to be called before this process has threads, which a fork would not copy."""
        self._listener.setblocking(False)
        read_fd, self._life_fd = os.pipe()
        with group_signals.blocked():
            pid = os.fork()
        if pid == 0:
            self._ours.close()
            os.close(self._life_fd)
            _run_process(read_fd, lambda: _Loop(self._listener, self._theirs, self._answers, self._prepare_channels()))
        os.close(read_fd)
        self._theirs.close()
        self._ours.setblocking(False)
        self._pid = pid

    def update(self, snapshot: bytes) -> None:
        """Lets the process know what has changed; one that is gone, or too busy to listen, misses it."""
        if self._is_handed_over or self._is_lost:
            return
        try:
            self._ours.send(snapshot)
        except BlockingIOError:
            pass
        except OSError:
            self._is_lost = True
            logger.warning("the responder process %s was killed: probes wait until the HTTP server is there", self._pid)

    def hand_over(self) -> None:
        """Stops accepting; what was accepted is still answered, by the process, which then ends.

        Returns when the process accepts no more: whoever has had an answer of the HTTP server gets no other one
        afterwards. A process that is stopped is not waited for much longer than that takes.
        """
        self._is_handed_over = True
        group_signals.start_thread(threading.Thread(target=self._end, name="startup-responder-end", daemon=True))
        self._has_given_up.wait(_GIVE_UP_S)

    def close(self) -> None:
        """Ends the process, cutting connections that have not been answered."""
        self._ours.close()
        if self._life_fd is not None:
            os.close(self._life_fd)  # the kernel ends it, even if it is stopped
            self._life_fd = None
        self._wait(_END_S)

    def _end(self) -> None:
        """This message must arrive: a responder that goes on would take connections from the HTTP server."""
        has_answered = False
        with suppress(OSError):
            self._ours.settimeout(_CONNECTION_S)
            self._ours.send(_HAND_OVER)
            self._ours.recv(len(_GIVEN_UP))  # or nothing, at its end
            has_answered = True
        self._has_given_up.set()
        if not self._wait(_CONNECTION_S + _END_S if has_answered else _END_S):
            logger.warning("the responder process %s does not give up the socket and is killed", self._pid)
            self._kill()

    def _kill(self) -> None:
        with self._waiting:
            if self._pid is not None:
                os.kill(self._pid, signal.SIGKILL)
        self._wait(_END_S)

    def _wait(self, timeout_s: float) -> bool:
        """Whether the process has ended by then."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            with self._waiting:
                if self._pid is None or _has_ended(self._pid):
                    self._pid = None
                    return True
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(_POLL_S)


def _has_ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:  # somebody else has waited for it
        return True


def _run_process(death_pipe_fd: int, build_loop: "Callable[[], _Loop]") -> NoReturn:
    """The forked process, from its first line to its end; it ends with the API process, however that ends."""
    try:
        group_signals.ignore()
        death_pipe.arm(death_pipe_fd)
        rename_process("responder")
        build_loop().run()
    except ServerError as err:
        logger.debug("probes are not answered until the HTTP server is there: %s", err)  # the preflight tells it aloud
    except Exception:
        logger.exception("probes are not answered until the HTTP server is there")
    finally:
        os._exit(0)


class _Loop:
    """Accepts, reads and answers; one thread."""

    def __init__(
        self, listener: socket.socket, api_process: socket.socket, answers: Answers, open_channel: OpenChannel
    ) -> None:
        self._listener = listener
        self._api_process = api_process
        self._answers = answers
        self._open_channel = open_channel
        self._selector = selectors.DefaultSelector()
        self._is_accepting = True
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = _MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else min(_MOST_CONNECTIONS, soft // 2)
        """So many connections are kept; beyond that the oldest goes."""

    def run(self) -> None:
        """Until the socket is handed over and all are answered, or the API process has gone away."""
        connections: list[_Connection] = []
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._api_process, selectors.EVENT_READ)
        while self._is_accepting or connections:
            for key, _ in self._selector.select(timeout=1.0):
                if key.fileobj is self._listener:
                    if len(connections) >= self._most:  # without a file to spare, accepting would fail without end
                        connections.pop(0).close()
                    connections += self._accept()
                elif key.fileobj is self._api_process:
                    message = self._api_process.recv(_MAX_MESSAGE_BYTES)
                    if not message:
                        return
                    self._take(message)
                else:
                    key.data.advance()
            connections = [c for c in connections if not c.is_done_by(time.monotonic())]

    def _take(self, message: bytes) -> None:
        if message != _HAND_OVER:
            self._answers.follow(message)
        elif self._is_accepting:
            self._is_accepting = False
            self._selector.unregister(self._listener)
            self._listener.close()
            with suppress(OSError):  # the API process is gone, which is noticed next
                self._api_process.send(_GIVEN_UP)

    def _accept(self) -> "list[_Connection]":
        try:
            client, _ = self._listener.accept()
        except OSError:
            return []
        try:
            channel = self._open_channel(client)
        except OSError:
            client.close()
            return []
        return [_Connection(channel, self._selector, self._answers.answer)]


class _Connection:
    """One client: read, answered, and its end of the stream awaited, so that no answer is lost to a reset."""

    def __init__(self, client: Channel, selector: selectors.BaseSelector, answer: Callable[[str], Answer]) -> None:
        self._client = client
        self._selector = selector
        self._answer = answer
        self._received = b""
        self._to_send: bytes | None = None
        self._deadline = time.monotonic() + _CONNECTION_S
        self._is_closed = False
        client.setblocking(False)
        selector.register(client, selectors.EVENT_READ, self)

    def advance(self) -> None:
        """Does what the socket is ready for."""
        try:
            if self._to_send is None:
                self._read_request()
            elif self._to_send:
                self._send()
            elif not self._client.recv(_CHUNK_BYTES):
                self.close()
        except BlockingIOError:
            return
        except OSError:
            self.close()

    def is_done_by(self, now: float) -> bool:
        """Whether the connection is closed; closes it when its time is up."""
        if not self._is_closed and now > self._deadline:
            self.close()
        return self._is_closed

    def close(self) -> None:
        """Closes the socket."""
        if not self._is_closed:
            self._is_closed = True
            self._selector.unregister(self._client)
            self._client.close()

    def _read_request(self) -> None:
        data = self._client.recv(_CHUNK_BYTES)
        self._received += data
        if not data:
            self.close()
        elif _is_complete(self._received):
            self._to_send = self._answer(_path(self._received)).encode()
            self._selector.modify(self._client, selectors.EVENT_WRITE, self)
            self._send()

    def _send(self) -> None:
        assert self._to_send is not None
        self._to_send = self._to_send[self._client.send(self._to_send) :]
        if not self._to_send:
            self._client.shutdown(socket.SHUT_WR)
            self._selector.modify(self._client, selectors.EVENT_READ, self)


def _is_complete(request: bytes) -> bool:
    """Whether head and announced body have arrived; a body that is too long is answered without it."""
    head, separator, body = request.partition(b"\r\n\r\n")
    if not separator:
        return len(request) > _MAX_REQUEST_BYTES
    return len(request) > _MAX_REQUEST_BYTES or len(body) >= _content_length(head)


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return 0


def _path(request: bytes) -> str:
    words = request.split(b"\r\n", 1)[0].split(b" ")
    return words[1].partition(b"?")[0].decode("latin-1") if len(words) > 1 else "/"
