"""The responder's process accepts, reads and answers all connections in one thread, without blocking.

So a slow client does not delay other clients. Once vLLM serves, `startup.port.acceptor` may go on here.
"""

import logging
import os
import re
import resource
import selectors
import socket
import time
from collections.abc import Callable
from typing import NoReturn, Protocol

from base.errors import ServerError
from startup.logs.setup import rename_process
from startup.port.acceptor import SERVE, Acceptor
from startup.port.listener import is_listening
from startup.port.probe_http import Answer
from startup.processes import death_pipe, group_signals

logger = logging.getLogger(__name__)

CONNECTION_S = 10.0
"""Seconds after which a connection is closed, even if it has not been answered."""

_MAX_HEAD_BYTES = 1 << 16
_MAX_BODY_BYTES = 1 << 20
_END_OF_HEAD = b"\r\n\r\n"
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length[ \t]*:[ \t]*([0-9]{1,18})[ \t]*\r", re.IGNORECASE)
_MAX_MESSAGE_BYTES = 1 << 20
_MAX_CONNECTIONS = 1024
_CHUNK_BYTES = 1 << 16


class Answers(Protocol):
    """What the responder answers. `session/start_state.py` has the answers of a session."""

    def answer(self, path: str) -> Answer:
        """The answer to a GET of this path. Must not block."""

    def follow(self, message: bytes) -> None:
        """Takes over what `StartupResponder.update` has sent."""


OpenChannel = Callable[[socket.socket], socket.socket]
"""Prepares an accepted, non-blocking socket, for example for TLS. Raises OSError to reject the client."""


def open_plain() -> OpenChannel:
    """Returns a function that returns each accepted socket unchanged: the clients use no TLS."""
    return lambda client: client


def run_process(
    death_pipe_fd: int,
    api_process: socket.socket,
    listener: socket.socket,
    answers: Answers,
    prepare_channels: Callable[[], OpenChannel],
) -> NoReturn:
    """Runs the forked process until it exits. The kernel kills this process when the API process exits."""
    try:
        group_signals.ignore()
        death_pipe.arm(death_pipe_fd)
        rename_process("responder")
        _Loop(listener, api_process, answers, prepare_channels()).run()
    except ServerError as err:  # the preflight reports it at a higher level
        logger.debug("probes are not answered until the HTTP server accepts: %s", err)
    except Exception:
        logger.exception("the responder has failed: the HTTP server answers probes once it accepts")
    finally:
        os._exit(0)


class _Loop:
    """The loop that accepts, reads and answers connections."""

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
        self._max_connections = _MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(_MAX_CONNECTIONS, soft // 2)
        """If there are this many connections and another client connects, the oldest connection is closed."""

    def run(self) -> None:
        """Returns once the socket is handed over and all clients are answered, or the API process exits."""
        connections: list[ProbeConnection] = []
        if is_listening(self._listener):
            self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._api_process, selectors.EVENT_READ)
        while self._is_accepting or connections:
            for key, _ in self._selector.select(timeout=1.0):
                if key.fileobj is self._listener:
                    if len(connections) >= self._max_connections:  # without a free descriptor, accept() always fails
                        connections.pop(0).close()
                    connections += self._accept()
                elif key.fileobj is self._api_process:
                    message = self._api_process.recv(_MAX_MESSAGE_BYTES)
                    if message == SERVE:
                        self._accept_for_server(connections)
                        return
                    self._process(message)
                else:
                    key.data.advance()
            connections = [c for c in connections if not c.is_done_by(time.monotonic())]

    def _accept_for_server(self, connections: "list[ProbeConnection]") -> None:
        if self._listener not in self._selector.get_map():  # it has not listened before
            self._selector.register(self._listener, selectors.EVENT_READ)
        Acceptor(self._listener, self._api_process, self._selector).run(connections)

    def _process(self, message: bytes) -> None:
        """Applies a message with the start's state. An empty message (end of stream) ends the accepting."""
        if message:
            self._answers.follow(message)
            return
        self._is_accepting = False
        for ended in (self._listener, self._api_process):
            if ended in self._selector.get_map():
                self._selector.unregister(ended)
            ended.close()

    def _accept(self) -> "list[ProbeConnection]":
        try:
            client, _ = self._listener.accept()
        except OSError:
            return []
        client.setblocking(False)
        try:
            channel = self._open_channel(client)
        except OSError:
            client.close()
            return []
        except Exception:  # an error of one connection must not end the process
            logger.exception("a connection is closed")
            client.close()
            return []
        return [ProbeConnection(channel, self._selector, self._answers.answer)]


class ProbeConnection:
    """The connection of one client. Reads the request, answers, and waits until the client closes its side.

    If the socket were closed earlier, this could reset the connection before the client has read the answer.
    """

    def __init__(
        self, client: socket.socket, selector: selectors.BaseSelector, answer: Callable[[str], Answer]
    ) -> None:
        self._client = client
        self._selector = selector
        self._answer = answer
        self._head = bytearray()
        self._num_body_bytes = 0
        """The bytes of the body that have not come, once the head is complete."""
        self._has_head = False
        self._to_send: bytes | None = None
        self._deadline = time.monotonic() + CONNECTION_S
        self._is_closed = False
        selector.register(client, selectors.EVENT_READ, self)

    def advance(self) -> None:
        """Reads or writes as much as the socket permits without blocking."""
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
        except Exception:  # an error of one connection must not end the process
            logger.exception("a connection is closed")
            self.close()

    def is_done_by(self, now: float) -> bool:
        """Whether the connection is closed. Closes the connection if its deadline has passed."""
        if not self._is_closed and now > self._deadline:
            self.close()
        return self._is_closed

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._selector.unregister(self._client)
            self._client.close()

    def _read_request(self) -> None:
        data = self._client.recv(_CHUNK_BYTES)
        if not data:
            self.close()
        elif self._has_whole_request(data):
            self._to_send = self._answer(_path(self._head)).encode()
            self._selector.modify(self._client, selectors.EVENT_WRITE, self)
            self._send()

    def _has_whole_request(self, data: bytes) -> bool:
        """Takes more bytes. Returns whether the head and the announced body have arrived.

        A request whose head or body is too long counts as complete. Each byte is searched once.
        """
        if self._has_head:
            self._num_body_bytes -= len(data)
            return self._num_body_bytes <= 0
        searched_from = max(0, len(self._head) - len(_END_OF_HEAD) + 1)
        self._head += data
        end = self._head.find(_END_OF_HEAD, searched_from)
        if end < 0:
            return len(self._head) > _MAX_HEAD_BYTES
        self._has_head = True
        num_received = len(self._head) - end - len(_END_OF_HEAD)
        announced = _CONTENT_LENGTH.search(self._head, 0, end + len(_END_OF_HEAD))
        length = 0 if announced is None else int(announced[1])
        self._num_body_bytes = min(length, _MAX_BODY_BYTES) - num_received
        del self._head[end:]
        return self._num_body_bytes <= 0

    def _send(self) -> None:
        assert self._to_send is not None
        self._to_send = self._to_send[self._client.send(self._to_send) :]
        if not self._to_send:
            self._client.shutdown(socket.SHUT_WR)
            self._selector.modify(self._client, selectors.EVENT_READ, self)


def _path(head: bytes | bytearray) -> str:
    """The path without query and final slashes."""
    words = head.partition(b"\r\n")[0].split(b" ", 2)
    target = words[1] if len(words) > 1 else b""
    path = target.partition(b"?")[0].decode("latin-1")
    return path.rstrip("/") or "/"
