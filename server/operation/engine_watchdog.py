"""Detects that the engine hangs, logs once where it hangs, and ends it after a time limit.

The engine is the embedded engine or vLLM. The limit is shorter while a router needs the memory for another
model.
"""

import asyncio
import logging
import time
from typing import Final, Protocol

from base.server_settings import GIVES_WAY_S, waiting_mark
from base.wording import list_some
from envs.registry import env

logger = logging.getLogger(__name__)

SILENCE_METRIC: Final = (
    "vllm_cli:engine_silence_seconds",
    "How long the engine has been in one step, or has not answered.",
)
_TELL_AFTER_S: Final = 30.0
_LONGEST_CHECK_S: Final = 0.5
_CHECKS_PER_TIMEOUT: Final = 10
_ANSWERS_S: Final = 0.5
"""How many seconds clients and probes get responses with the reason before the engine is killed."""
_BUSY_SHARE: Final = 0.5
"""A silent engine that uses more than this share of one processor counts as computing a long step."""


class AskedEngine(Protocol):
    """An engine that answers pings between two of its steps."""

    @property
    def is_on_processor(self) -> bool:
        """Whether the engine computes on the processor. With a GPU, waiting also uses processor time."""

    def has_answered(self) -> bool:
        """Whether the engine has answered. If so, the next ping is sent. Called once per check."""


class EngineProcesses(Protocol):
    """The processes of an engine. The launcher provides them."""

    def stopped(self) -> list[str]:
        """The names of the processes that a signal such as SIGSTOP has stopped."""

    def computed_s(self, *, is_on_processor: bool) -> float:
        """Returns the processor seconds of the computing processes. With a GPU, only compilers count."""

    async def read_stacks(self) -> str:
        """Returns the stack of each process's main thread, as text for the log."""

    async def end(self, reason: str) -> None:
        """Stores the reason and all stacks for the crash report, and kills the processes."""


class WatchedServer(Protocol):
    """The server to which the engine belongs."""

    @property
    def num_running(self) -> int:
        """The number of requests that the server is answering."""

    def engine_hangs(self, reason: str) -> None:
        """Ends the running requests with an error. All later requests get a response with status 503."""


class EngineWatchdog:
    """Runs on the event loop. `run` is its only task.

    An engine is silent while it does not answer, or while one of its processes is stopped. Time in which the
    watchdog's own process did not run does not count.
    """

    def __init__(
        self,
        engine: AskedEngine,
        processes: EngineProcesses,
        server: WatchedServer,
        *,
        timeout_s: float,
        is_first: bool = True,
    ) -> None:
        """The engine is ended after `timeout_s` of silence. With 0, the engine is not watched.

        `is_first` is true in one API process, which logs the hang and ends the engine. All other API
        processes only end their own requests.
        """
        self._engine = engine
        self._processes = processes
        self._timeout_s = timeout_s
        self._server = server
        self._is_first = is_first
        self.silence_s = 0.0
        """How many seconds the engine has been silent. 0 while it answers."""
        self._since = ""
        """The time of day when the silence began."""
        self._computed_s = 0.0
        """The processor time that the engine had used when the silence began."""
        self._level: int | None = None
        """The level of the log line about this silence. None until the line is logged."""

    async def run(self) -> None:
        """Returns when the engine has been ended, or immediately if it is not watched."""
        try:
            if self._timeout_s:
                await self._run()
        except Exception:
            logger.exception("the engine's watchdog has failed")

    async def _run(self) -> None:
        check_s = min(self._timeout_s / _CHECKS_PER_TIMEOUT, _LONGEST_CHECK_S)
        while not (reason := self._find_hang()):
            await self._check(check_s)
        self._server.engine_hangs(reason)
        await asyncio.sleep(_ANSWERS_S)
        if self._is_first:
            await self._processes.end(reason)

    def _find_hang(self) -> str:
        """Returns why the engine must be ended. Empty if there is no reason."""
        if self.silence_s >= self._timeout_s:
            return f"it was silent for {self._timeout_s:g} s (--engine-watchdog-timeout): {self._known()}"
        if self.silence_s >= GIVES_WAY_S and _do_others_wait() and not self._computes():
            return f"it was silent for {self.silence_s:.0f} s while others wait for its memory: {self._known()}"
        return ""

    async def _check(self, check_s: float) -> None:
        begin_s = time.monotonic()
        await asyncio.sleep(check_s)
        passed_s = min(time.monotonic() - begin_s, 2 * check_s)
        has_answered = self._engine.has_answered()
        if has_answered and not self._processes.stopped():
            self._end_silence()
            return
        if not self.silence_s:
            self._since = time.strftime("%H:%M:%S")
            self._computed_s = self._computed_so_far()
        self.silence_s += passed_s
        if self.silence_s >= _TELL_AFTER_S and self._level is None and self._is_first:
            await self._tell()

    def _end_silence(self) -> None:
        if self._level is not None:
            logger.log(self._level, "the engine answers again, after %.0f s", self.silence_s)
        self.silence_s, self._level = 0.0, None

    async def _tell(self) -> None:
        computed_s = self._computed_so_far() - self._computed_s
        end = f"it is ended after {self._timeout_s:g} s (--engine-watchdog-timeout)"
        if self._computes():
            self._level = logging.INFO
            text = "the engine has been in one step for %.0f s, with %.0f s of processor time: %s; %s"
            logger.info(text, self.silence_s, computed_s, self._known(), end)
            return
        self._level = logging.WARNING
        text = "the engine has been silent for %.0f s, with %.0f s of processor time: %s; %s\n%s"
        stacks = await self._processes.read_stacks()
        logger.warning(text, self.silence_s, computed_s, self._known(), end, stacks)

    def _computes(self) -> bool:
        """Whether the engine is silent because it computes a long step."""
        computed_s = self._computed_so_far() - self._computed_s
        return computed_s > _BUSY_SHARE * self.silence_s and not self._processes.stopped()

    def _computed_so_far(self) -> float:
        return self._processes.computed_s(is_on_processor=self._engine.is_on_processor)

    def _known(self) -> str:
        """Describes when the silence began, how many requests run, and which processes are stopped."""
        stopped = self._processes.stopped()
        running = f"since {self._since}, {self._server.num_running} requests run"
        return f"{running}; stopped by a signal: {list_some(stopped)}" if stopped else running


def _do_others_wait() -> bool:
    """Whether the router that started this server needs the server's memory for another model."""
    socket_path = env.VCLI_ROUTER.get()
    return socket_path is not None and waiting_mark(socket_path).exists()
