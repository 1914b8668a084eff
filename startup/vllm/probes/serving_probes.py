"""Lets the responder's process answer `/health` while vLLM serves, because its event loop may be blocked.

The responder accepts on the port and passes every connection but probes to this process
(`startup.probes.acceptor`). Here, on vLLM's event loop, they are given to uvicorn's protocol as if its own
socket had accepted them. If the responder ends or hangs, uvicorn accepts itself.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from envs.registry import env
from startup.probes.probe_link import ProbeLink
from startup.probes.responder import StartupResponder
from startup.probes.serving_messages import HealthAnswer, ServingSettings
from startup.vllm.probes.health_sample import HealthSampler

logger = logging.getLogger(__name__)

Startup = Callable[[], Awaitable[None]]


class CreatedServer(NamedTuple):
    """A server that uvicorn has created on the event loop and that accepts nothing yet."""

    create_protocol: Callable[[], asyncio.Protocol]
    server: asyncio.Server


class ServingProbes(ProbeLink):
    """Connects one uvicorn server to the responder; all methods run on its event loop."""

    def __init__(self, responder: StartupResponder) -> None:
        super().__init__(responder, "vLLM")
        self._created: CreatedServer
        self._sampler: HealthSampler

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
        if not await self._open(settings):
            accept_without()
            await _start_serving(created)
            return
        server.main_loop = self._ending_after(server.main_loop)

    def _ending_after(self, main_loop: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """uvicorn's main loop; after it, uvicorn accepts itself until it shuts down."""

        async def run() -> None:
            try:
                await main_loop()
            finally:
                await self.end()

        return run

    async def _find_answer(self) -> HealthAnswer | None:
        try:
            return await self._sampler.current()
        except Exception:  # the loop runs: without a heartbeat it would count as blocked
            logger.exception("the answer of /health is not known: vLLM answers each probe itself")
            return None

    async def _connect(self, connection: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(self._created.create_protocol, connection)

    async def _accept_without(self) -> None:
        await _start_serving([self._created])

    @property
    def _path_prefix(self) -> str:
        return self._sampler.root_path


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
