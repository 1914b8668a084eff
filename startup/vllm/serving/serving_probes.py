"""Lets the responder's process answer probes while vLLM serves, because vLLM's event loop may be blocked.

The responder accepts on the port and passes all connections except probes to this process
(`startup.port.acceptor`). On vLLM's event loop, this process gives the connections to uvicorn's protocol as
if uvicorn's own socket had accepted them. A heartbeat sends the answer to `/health` to the responder, and
shows that the event loop runs. If the responder ends or hangs, uvicorn itself accepts connections.
"""

import asyncio
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

from startup.port.acceptor import ACCEPTING, BEAT, CONNECTION, AnsweredProbe
from startup.port.responder import StartupResponder
from startup.processes import group_signals
from startup.vllm.serving.health_sampler import HealthSampler

logger = logging.getLogger(__name__)

Startup = Callable[[], Awaitable[None]]

_BEAT_S: Final = 0.1
_MAX_REFUSED: Final = 24
"""The responder is killed when it has read so few heartbeats that the kernel refuses this many in a row.

On a busy machine, up to eight heartbeats were unread although the responder did not hang.
"""
_END_S: Final = 1.0
_MAX_MESSAGES_PER_TURN: Final = 64
"""Most messages that are read per turn of the event loop. A busy loop might otherwise read without end."""
_MAX_MESSAGE_BYTES: Final = 1 << 12


class CreatedServer(NamedTuple):
    """A server that uvicorn has created on the event loop and that accepts nothing yet."""

    create_protocol: Callable[[], asyncio.Protocol]
    server: asyncio.Server


class ServingProbes:
    """Connects one uvicorn server to the responder. All methods run on the server's event loop."""

    def __init__(self, responder: StartupResponder) -> None:
        self._responder = responder
        self._link: socket.socket
        self._created: CreatedServer
        self._sampler: HealthSampler
        self._heartbeat: asyncio.Task[None]
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_refused = 0
        self._is_accepted_for = asyncio.Event()
        """Set once the responder accepts for uvicorn, or uvicorn itself accepts."""
        self._has_ended = asyncio.Event()
        """Set once uvicorn itself accepts."""
        self._is_ending = False

    def can_serve(self, server: Any, sockets: Sequence[socket.socket] | None) -> bool:
        """Whether the responder may accept for this uvicorn server.

        Returns False with TLS, with several API servers, or if vLLM must see each probe.
        """
        return (
            sockets is not None
            and len(sockets) == 1
            and sockets[0].getsockname() == self._responder.address
            and not server.config.is_ssl
            and getattr(server, "peer_loads", None) is None
            and not _is_probe_seen(server)
        )

    async def start(self, server: Any, startup: Startup, accept_without: Callable[[], None]) -> None:
        """Runs the `startup` of uvicorn's `server`. Returns when connections are accepted.

        If the responder has exited, `accept_without` is called before uvicorn itself accepts.
        """
        loop = asyncio.get_running_loop()
        with _created_by(loop) as created:
            await startup()
        link = self._responder.keep() if server.started and len(created) == 1 else None
        if link is None:
            self._has_ended.set()
            accept_without()
            await _start_serving(created)
            return
        self._link, self._created, self._sampler = link, created[0], HealthSampler(server)
        loop.add_reader(link.fileno(), self._receive)
        self._heartbeat = loop.create_task(self._beat(), name="probe-heartbeat")
        await self._is_accepted_for.wait()
        server.main_loop = self._ending_after(server.main_loop)

    async def end(self) -> None:
        """Ends the responder. Returns once uvicorn has all connections and itself accepts new connections."""
        self._is_ending = True
        if not self._has_ended.is_set():
            with suppress(OSError):
                self._link.shutdown(socket.SHUT_WR)
            try:
                await asyncio.wait_for(self._has_ended.wait(), _END_S)
            except TimeoutError:
                self._reap()
                await self._has_ended.wait()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def forget_answer(self) -> None:
        """Called when the answer to `/health` changes. uvicorn answers probes until a new answer is known."""
        if self._is_accepted_for.is_set():
            self._send_beat(b"")

    def _ending_after(self, main_loop: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Wraps uvicorn's main loop, so that uvicorn itself accepts after the loop, until its shutdown."""

        async def run() -> None:
            try:
                await main_loop()
            finally:
                await self.end()

        return run

    async def _beat(self) -> None:
        """Sends heartbeats forever. Sends none while vLLM's application does not answer `/health`."""
        while True:
            self._send_beat(await self._find_answer())
            await asyncio.sleep(_BEAT_S)

    async def _find_answer(self) -> bytes:
        try:
            return await self._sampler.current()
        except Exception:  # the loop runs: without a heartbeat it would count as blocked
            logger.exception("the answer of /health is not known: vLLM answers each probe itself")
            return b""

    def _send_beat(self, answer: bytes) -> None:
        try:
            self._link.send(BEAT + answer)
            self._num_refused = 0
        except BlockingIOError:
            self._num_refused += 1
            if self._num_refused == _MAX_REFUSED and not self._is_ending:
                logger.warning("the responder process does not reply and is killed: vLLM answers /health itself")
                self._is_ending = True
                self._reap()
        except OSError:
            pass  # it has exited, or is about to end

    def _receive(self) -> None:
        """Processes the responder's messages, a limited number per turn of the event loop."""
        num_left = _MAX_MESSAGES_PER_TURN
        while num_left > 0:
            num_left -= 1
            try:
                message, fds, _, _ = socket.recv_fds(
                    self._link, _MAX_MESSAGE_BYTES, 1, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except ConnectionResetError:  # it was killed before it read everything; its last messages come next
                num_left = sys.maxsize  # all of them, as uvloop calls no more
                continue
            if not message:
                self._go_on_without()
                return
            self._process(message, fds)

    def _process(self, message: bytes, fds: list[int]) -> None:
        if message == CONNECTION:
            for fd in fds:  # none if no descriptor was free
                self._run(self._connect(socket.socket(fileno=fd)))
        elif message == ACCEPTING:
            self._is_accepted_for.set()
        else:
            self._log(AnsweredProbe.decode(message))

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._created.create_protocol, connection)
        except OSError as err:  # the client has gone
            logger.debug("a connection was not accepted: %s", err)
            connection.close()

    def _log(self, probe: AnsweredProbe) -> None:
        """Writes the line that uvicorn writes for a request."""
        path = self._sampler.root_path + probe.path
        args = (probe.client, "GET", path, probe.http_version, int(probe.status))
        logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', *args)

    def _go_on_without(self) -> None:
        """Called when the responder has exited. From then on, uvicorn itself accepts."""
        if not self._is_ending:
            logger.warning("the responder process was killed: vLLM answers /health itself")
        self._is_ending = True
        asyncio.get_running_loop().remove_reader(self._link.fileno())
        self._heartbeat.cancel()
        self._reap()
        self._run(self._accept_without())

    async def _accept_without(self) -> None:
        await _start_serving([self._created])
        self._has_ended.set()
        self._is_accepted_for.set()

    def _reap(self) -> None:
        group_signals.start_thread("responder-end", self._responder.kill)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextmanager
def _created_by(loop: Any) -> Iterator[list[CreatedServer]]:
    """Yields a list to which the loop's new servers are added. A server in the list does not accept yet."""
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


def _is_probe_seen(server: Any) -> bool:
    """Whether vLLM must see probes: a connection limit counts them, or `--middleware` may answer them."""
    args = getattr(getattr(server.config.app, "state", None), "args", None)
    return server.config.limit_concurrency is not None or bool(getattr(args, "middleware", None))
