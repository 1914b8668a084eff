"""Has the responder's process answer vLLM's `/health` while vLLM serves, as its event loop may be held.

The responder accepts on the port and passes every connection but probes to this process
(`startup.probes.acceptor`). Here, on vLLM's event loop, they are given to uvicorn's protocol as if its own
socket had accepted them. A heartbeat tells the responder what `/health` answers and that the loop runs. If
the responder ends or hangs, uvicorn accepts itself.
"""

import asyncio
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

from envs.registry import env
from startup.probes.responder import StartupResponder
from startup.probes.responder_process import HAND_OVER
from startup.probes.serving_messages import BEAT, AnsweredProbe, HealthAnswer, Kind, Report, ServingSettings
from startup.processes import group_signals
from startup.vllm.health_sample import HealthSampler

logger = logging.getLogger(__name__)

_BEAT_S: Final = 0.1
_MAX_UNANSWERED: Final = 8
"""The responder is killed if it leaves so many heartbeats in a row without a reply."""
_END_S: Final = 1.0
_MAX_REPORTS_PER_TURN: Final = 64
_MAX_MESSAGE_BYTES: Final = 1 << 12

Startup = Callable[[], Awaitable[None]]


class CreatedServer(NamedTuple):
    """A server that uvicorn has created on the event loop and that accepts nothing yet."""

    create_protocol: Callable[[], asyncio.Protocol]
    server: asyncio.Server


class ServingProbes:
    """Connects one uvicorn server to the responder; all methods run on its event loop."""

    def __init__(self, responder: StartupResponder) -> None:
        self._responder = responder
        self._link: socket.socket
        self._created: CreatedServer
        self._sampler: HealthSampler
        self._held: dict[int, socket.socket] = {}
        """Duplicates of connections that wait in the responder, by their number."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._heartbeat: asyncio.Task[None]
        self._num_unanswered = 0
        self._has_replied = asyncio.Event()
        self._has_ended = asyncio.Event()
        self._is_ending = False

    def can_serve(self, server: Any, sockets: list[socket.socket] | None) -> bool:
        """Whether the responder may accept for this uvicorn server.

        Not with TLS, with several API servers, with a limit of connections, which probes count towards, or
        with `--middleware`, which may answer each probe differently.
        """
        config = server.config
        args = getattr(getattr(config.app, "state", None), "args", None)
        return (
            sockets is not None
            and len(sockets) == 1
            and sockets[0].getsockname() == self._responder.address
            and not config.is_ssl
            and config.limit_concurrency is None
            and getattr(server, "peer_loads", None) is None
            and not getattr(args, "middleware", None)
        )

    async def start(self, server: Any, startup: Startup, accept_without: Callable[[], None]) -> None:
        """Runs uvicorn's own startup; returns when connections are accepted.

        Args:
            server: uvicorn's server.
            startup: its `startup`.
            accept_without: called before uvicorn accepts itself, if the responder has exited.
        """
        loop = asyncio.get_running_loop()
        with _created_by(loop) as created:
            await startup()
        if not server.started or len(created) != 1:
            accept_without()
            await _start_serving(created)
            return
        self._created = created[0]
        self._sampler = HealthSampler(server)
        settings = ServingSettings(
            keep_alive_s=server.config.timeout_keep_alive,
            reports_probes=_has_access_log(),
            wants_realtime=env.VCLI_PROBE_REALTIME.get(),
        )
        link = self._responder.keep(settings)
        if link is None:
            accept_without()
            await _start_serving(created)
            return
        self._link = link
        server.main_loop = self._ending_after(server.main_loop)
        loop.add_reader(link.fileno(), self._receive)
        self._heartbeat = loop.create_task(self._beat(), name="probe-heartbeat")
        waits = [loop.create_task(event.wait()) for event in (self._has_replied, self._has_ended)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def _ending_after(self, main_loop: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """uvicorn's main loop; after it, uvicorn accepts itself until it shuts down."""

        async def run() -> None:
            try:
                await main_loop()
            finally:
                await self._end()

        return run

    async def _end(self) -> None:
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
            answer = await self._sample()
            with suppress(OSError):  # its queue is full, or it has exited
                self._link.send(answer.encode() if answer is not None else BEAT)
            self._num_unanswered += 1
            if self._num_unanswered == _MAX_UNANSWERED:
                self._kill()
            await asyncio.sleep(_BEAT_S)

    async def _sample(self) -> HealthAnswer | None:
        try:
            return await self._sampler.current()
        except Exception:  # the loop runs: without a heartbeat it would count as blocked
            logger.exception("the answer of /health is not known: vLLM answers each probe itself")
            return None

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
                self._accept_self()
                return
            self._process(Report.decode(message), fds)

    def _process(self, report: Report, fds: list[int]) -> None:
        connections = [socket.socket(fileno=fd) for fd in fds]
        match report.kind:
            case Kind.ECHO:
                self._num_unanswered = 0
                self._has_replied.set()
            case Kind.HOLD if connections:
                self._held[report.connection_id] = connections[0]
            case Kind.TAKE:
                connection = connections[0] if connections else self._held.pop(report.connection_id, None)
                if connection is not None:
                    self._adopt(connection)
            case Kind.DROP:
                if (connection := self._held.pop(report.connection_id, None)) is not None:
                    connection.close()
            case Kind.ANSWERED if report.probe is not None:
                self._log(report.probe)

    def _adopt(self, connection: socket.socket) -> None:
        self._run(self._connect(connection))

    def _run(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._created.create_protocol, connection)
        except OSError as err:  # the client has gone
            logger.debug("a connection was not accepted: %s", err)
            connection.close()

    def _log(self, probe: AnsweredProbe) -> None:
        """Writes the line that uvicorn writes for a request."""
        line = '%s - "%s %s HTTP/%s" %d'
        access = logging.getLogger("uvicorn.access")
        access.info(line, probe.client, "GET", self._sampler.path, probe.http_version, probe.status)

    def _kill(self) -> None:
        if not self._is_ending:
            logger.warning("the responder process does not reply and is killed: vLLM answers /health itself")
        self._is_ending = True
        self._reap()

    def _reap(self) -> None:
        thread = threading.Thread(target=self._responder.kill, name="responder-end", daemon=True)
        group_signals.start_thread(thread)

    def _accept_self(self) -> None:
        """The responder has exited: uvicorn serves the connections that waited there, and accepts."""
        if not self._is_ending:
            logger.warning("the responder process was killed: vLLM answers /health itself")
        asyncio.get_running_loop().remove_reader(self._link.fileno())
        self._heartbeat.cancel()
        self._reap()
        for connection in self._held.values():
            self._adopt(connection)
        self._held.clear()
        self._run(self._start_serving())

    async def _start_serving(self) -> None:
        await _start_serving([self._created])
        self._has_ended.set()


@contextmanager
def _created_by(loop: Any) -> Iterator[list[CreatedServer]]:
    """The servers that are created on the loop from a socket; they do not accept yet."""
    created: list[CreatedServer] = []
    original = loop.create_server

    async def create_server(create_protocol: Any, *args: Any, **options: Any) -> Any:
        if options.get("sock") is None:
            return await original(create_protocol, *args, **options)
        server = await original(create_protocol, *args, **{**options, "start_serving": False})
        created.append(CreatedServer(create_protocol, server))
        return server

    loop.create_server = create_server
    try:
        yield created
    finally:
        del loop.create_server


async def _start_serving(created: list[CreatedServer]) -> None:
    for each in created:
        await each.server.start_serving()


def _has_access_log() -> bool:
    return logging.getLogger("uvicorn.access").hasHandlers()
