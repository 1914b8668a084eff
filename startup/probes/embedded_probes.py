"""Lets the responder's process answer probes while the embedded engine's server is ready.

The server accepts itself. The responder accepts connections that have waited for a millisecond; the server
lends it connections on which there were only probes. All others cost the same as without the responder.
"""

import socket
from collections.abc import Sequence
from typing import Final

from server.server_config import ServerConfig
from server.transport.probe_process import ProbedServer
from startup.hooks.hook import uses
from startup.probes.probe_link import ProbeLink
from startup.probes.responder import StartupResponder
from startup.probes.serving_messages import HealthAnswer, ServingSettings

_ACCEPT_DELAY_S: Final = 0.001


class EmbeddedProbes(ProbeLink):
    """Implements `server.transport.probe_process.ProbeProcess`."""

    def __init__(self, responder: StartupResponder, config: ServerConfig, paths: Sequence[str]) -> None:
        super().__init__(responder, "the server")
        self._settings = ServingSettings(
            keep_alive_s=config.timeout_keep_alive_s,
            reports_probes=not config.logging.disable_access_log,
            wants_realtime=uses("real-time probes"),
            paths=paths,
            accept_delay_s=_ACCEPT_DELAY_S,
        )
        self._server: ProbedServer

    async def start(self, server: ProbedServer) -> bool:
        """Returns once the responder follows the server's state; False if it has exited."""
        self._server = server
        return await self._open(self._settings)

    def refresh(self) -> None:
        """The server's state has changed."""
        if not self._is_ending:
            self._send_beat(self._current())

    async def find_answer(self) -> HealthAnswer | None:
        return self._current()

    def _current(self) -> HealthAnswer | None:
        head = self._server.find_healthy_head()
        return None if head is None else HealthAnswer(200, head, b"")

    async def connect(self, connection: socket.socket) -> None:
        await self._server.adopt(connection)

    async def accept_without(self) -> None:
        """The server accepts anyway."""

    @property
    def path_prefix(self) -> str:
        return ""
