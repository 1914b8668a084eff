"""Detects a model's server that hangs: it says so, answers nothing, or computes nothing while others wait."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

import aiohttp

from base.machine.processes import processor_s, stat_fields
from router.child_server import OwnServer

_CHECK_S: Final = 2.0
_ANSWER_S: Final = 2.0
_LONGEST_CHECK_S: Final = 5.0
"""What counts of one check: a pause of the router is no silence of the server."""
_SHOWN_S: Final = 5.0
_IDLE_S: Final = 45.0
"""How long a model with requests may compute nothing while its end is awaited. Before, the proxy disconnects
clients that do not read, and silent WebSockets."""
_IDLE_SHARE: Final = 0.05
"""Of one processor: servers without requests use less."""


class HangWatch:
    """Of one server of ours that answers requests; on the event loop."""

    def __init__(
        self, server: OwnServer, find_pids: Callable[[], Iterable[int]], is_awaited: Callable[[], bool]
    ) -> None:
        """
        Args:
            find_pids: its processes.
            is_awaited: whether its end is awaited, by another model or by hand.
        """
        self.fault = ""
        """What is wrong; the server may recover."""
        self._server = server
        self._find_pids = find_pids
        self._is_awaited = is_awaited
        self._silent_s = 0.0
        self._idle_s = 0.0
        self._computed_s = 0.0

    async def run(self) -> str:
        """Returns why the server counts as hung."""
        loop = asyncio.get_running_loop()
        async with self._session() as session:
            begin_s = loop.time()
            while True:
                await asyncio.sleep(_CHECK_S)
                reason = await self._find_fault(session)
                passed_s = min(loop.time() - begin_s, _LONGEST_CHECK_S)
                begin_s = loop.time()
                if reason or (reason := self._note(passed_s)):
                    return reason

    async def answers(self) -> bool:
        """Whether the server answers now."""
        async with self._session() as session:
            await self._find_fault(session)
        return not self._silent_s

    def _session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
        return aiohttp.ClientSession(connector=self._server.connector, connector_owner=False, timeout=timeout)

    async def _find_fault(self, session: aiohttp.ClientSession) -> str:
        """What the server says of its engine, if that hangs; notes whether it has answered."""
        try:
            reason = await self._server.find_hang(session)
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError):
            self._silent_s = max(self._silent_s, 1e-9)
            return ""
        self._silent_s = 0.0
        return reason

    def _note(self, passed_s: float) -> str:
        """Counts a check; returns why the server counts as hung."""
        self._silent_s += passed_s if self._silent_s else 0.0
        self.fault = f"It has not answered for {self._silent_s:.0f} s" if self._silent_s >= _SHOWN_S else ""
        if self._silent_s >= self._server.longest_silence_s:
            return f"{self.fault} (--engine-watchdog-timeout)"
        before_s, self._computed_s = self._computed_s, sum(map(_computed_s, self._find_pids()))
        is_idle = self._is_awaited() and self._computed_s - before_s < _IDLE_SHARE * passed_s
        self._idle_s = self._idle_s + passed_s if is_idle else 0.0
        if self._idle_s >= _IDLE_S:
            return f"It has computed nothing for {self._idle_s:.0f} s although it has requests, and others wait"
        return ""


def _computed_s(pid: int) -> float:
    with suppress(OSError):
        return processor_s(stat_fields(pid), with_reaped=False)
    return 0.0
