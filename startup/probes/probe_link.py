"""The HTTP server's end of its connection to the responder's process, which answers probes while it serves.

The responder passes on every connection but those of probes (`startup.probes.acceptor`). A heartbeat reports
the answer of `/health`, and that the event loop runs.
"""

import asyncio
import logging
import socket
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from itertools import count
from typing import Any, Final

from server.transport.probe_process import LentConnection
from startup.probes.responder import StartupResponder
from startup.probes.responder_process import HAND_OVER
from startup.probes.serving_messages import (
    BEAT,
    FIRST_LENT_ID,
    AnsweredProbe,
    HealthAnswer,
    Kind,
    Loan,
    Report,
    ServingSettings,
)
from startup.processes import group_signals

logger = logging.getLogger(__name__)

_BEAT_S: Final = 0.1
_MAX_UNANSWERED: Final = 30
"""The responder is killed if it leaves so many heartbeats in a row without a reply.

On a busy machine, one that runs has left eight.
"""
_END_S: Final = 1.0
_MAX_REPORTS_PER_TURN: Final = 64
_MAX_MESSAGE_BYTES: Final = 1 << 12


class ProbeLink(ABC):
    """Connects one HTTP server to the responder; all methods run on its event loop."""

    def __init__(self, responder: StartupResponder, server_name: str) -> None:
        """`server_name` is for log lines."""
        self._responder = responder
        self._server_name = server_name
        self._link: socket.socket
        self._held: dict[int, socket.socket] = {}
        """Duplicates of connections that wait in the responder, by their number."""
        self._lent: dict[int, LentConnection] = {}
        self._lent_ids = count(FIRST_LENT_ID)
        self._tasks: set[asyncio.Task[None]] = set()
        self._heartbeat: asyncio.Task[None]
        self._num_unanswered = 0
        self._repeats_answer = False
        """Whether the responder has an answer to repeat."""
        self._has_replied = asyncio.Event()
        self._has_ended = asyncio.Event()
        self._is_ending = False

    @abstractmethod
    async def find_answer(self) -> HealthAnswer | None:
        """What `/health` answers now; None if the HTTP server has to answer each probe itself."""

    @abstractmethod
    async def connect(self, connection: socket.socket) -> None:
        """Serves a connection that the responder has accepted; an OSError closes it."""

    @abstractmethod
    async def accept_without(self) -> None:
        """The responder has ended: the HTTP server accepts all connections itself from now on."""

    @property
    @abstractmethod
    def path_prefix(self) -> str:
        """What the access log writes before the path."""

    async def _open(self, settings: ServingSettings) -> bool:
        """Returns once the responder follows this link; False if it has exited."""
        link = self._responder.keep(settings)
        if link is None:
            return False
        self._link = link
        loop = asyncio.get_running_loop()
        loop.add_reader(link.fileno(), self._receive)
        self._heartbeat = loop.create_task(self._beat(), name="probe-heartbeat")
        waits = [loop.create_task(event.wait()) for event in (self._has_replied, self._has_ended)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return True

    def lend(self, connection: LentConnection, fd: int, client: str) -> bool:
        """Lets the responder wait for the next request on a connection; False if it cannot now."""
        if self._is_ending or not self._repeats_answer:
            return False
        connection_id = next(self._lent_ids)
        try:
            socket.send_fds(self._link, [Loan(connection_id, client).encode()], [fd])
        except OSError:  # its queue is full, or it has exited
            return False
        self._lent[connection_id] = connection
        return True

    async def end(self) -> None:
        """Returns once the HTTP server has all connections and accepts itself."""
        self._is_ending = True
        if not self._has_ended.is_set():
            with suppress(OSError):
                self._link.send(HAND_OVER)
            try:
                await asyncio.wait_for(self._has_ended.wait(), _END_S)
            except TimeoutError:
                self._kill()
                await self._has_ended.wait()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _beat(self) -> None:
        """Sends heartbeats for ever. While `/health` itself does not return, there is none."""
        while True:
            self._send_beat(await self.find_answer())
            self._num_unanswered += 1
            if self._num_unanswered == _MAX_UNANSWERED:
                self._kill()
            await asyncio.sleep(_BEAT_S)

    def _send_beat(self, answer: HealthAnswer | None) -> None:
        self._repeats_answer = answer is not None
        with suppress(OSError):  # its queue is full, or it has exited
            self._link.send(answer.encode() if answer is not None else BEAT)

    def _receive(self) -> None:
        """Processes the responder's reports."""
        for _ in range(_MAX_REPORTS_PER_TURN):
            try:
                message, fds, _, _ = socket.recv_fds(
                    self._link, _MAX_MESSAGE_BYTES, 1, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except ConnectionResetError:  # it was killed before it read everything; its last reports come next
                continue
            if not message:
                self._go_on_without()
                return
            self._process(Report.decode(message), fds)

    def _process(self, report: Report, fds: list[int]) -> None:
        match report.kind:
            case Kind.ECHO:
                self._num_unanswered = 0
                self._has_replied.set()
            case Kind.ANSWERED if report.probe is not None:
                self._log(report.probe)
            case _:
                self._process_connection(report, [socket.socket(fileno=fd) for fd in fds])

    def _process_connection(self, report: Report, connections: list[socket.socket]) -> None:
        connection_id = report.connection_id
        match report.kind:
            case Kind.HOLD if connections:
                self._held[connection_id] = connections[0]
            case Kind.TAKE:
                connection = connections[0] if connections else self._held.pop(connection_id, None)
                if connection is not None:
                    self._adopt(connection)
                elif (lent := self._lent.pop(connection_id, None)) is not None:
                    lent.take_back()
            case Kind.DROP:
                if (connection := self._held.pop(connection_id, None)) is not None:
                    connection.close()
                elif (lent := self._lent.pop(connection_id, None)) is not None:
                    lent.drop()

    def _adopt(self, connection: socket.socket) -> None:
        self._run(self._try_connect(connection))

    async def _try_connect(self, connection: socket.socket) -> None:
        try:
            await self.connect(connection)
        except OSError as err:  # the client has gone
            logger.debug("a connection was not accepted: %s", err)
            connection.close()

    def _run(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _log(self, probe: AnsweredProbe) -> None:
        """Writes the line that uvicorn writes for a request."""
        line = '%s - "%s %s HTTP/%s" %d'
        path = self.path_prefix + probe.path
        logging.getLogger("uvicorn.access").info(line, probe.client, "GET", path, probe.http_version, probe.status)

    def _kill(self) -> None:
        if not self._is_ending:
            text = "the responder process does not reply and is killed: %s answers /health itself"
            logger.warning(text, self._server_name)
        self._is_ending = True
        self._reap()

    def _reap(self) -> None:
        thread = threading.Thread(target=self._responder.kill, name="responder-end", daemon=True)
        group_signals.start_thread(thread)

    def _go_on_without(self) -> None:
        """The responder has exited: connections that waited there are served here."""
        if not self._is_ending:
            logger.warning("the responder process was killed: %s answers /health itself", self._server_name)
        self._is_ending = True
        asyncio.get_running_loop().remove_reader(self._link.fileno())
        self._heartbeat.cancel()
        self._reap()
        for connection in self._held.values():
            self._adopt(connection)
        for lent in self._lent.values():
            lent.take_back()
        self._held.clear()
        self._lent.clear()
        self._run(self._end_without())

    async def _end_without(self) -> None:
        await self.accept_without()
        self._has_ended.set()
