"""Starts a model's process, waits until its server is ready, and ends all processes that belong to it."""

import asyncio
import errno
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

import aiohttp

from base.machine.processes import descendants
from base.server_settings import GIVES_WAY_S, control_socket, waiting_mark
from router.child.child_process import ChildProcess, ProcessSet, describe_end
from router.child.log import ChildLog, LogRelay
from router.child.place import find_marked
from router.child.server import (
    ERRORS_S,
    STOP_S,
    ChildProgress,
    ChildReadiness,
    ForeignServer,
    OwnServer,
    execute_arguments,
)
from router.model_entry import ModelEntry
from startup.errors import NOT_STARTED_CAUSE, TIMEOUT_CAUSE, UNKNOWN_CAUSE, PortInUseError, code_line
from startup.storage.temp_folder import remove_left_behind

logger = logging.getLogger(__name__)

_AFTER_CRASH_S: Final = 2.0
"""Seconds after an unexpected end of the first process until the model's other processes are killed."""
_KILL_S: Final = 10.0
_OUTPUT_S: Final = 0.5
"""Seconds in which the router reads the rest of the output after the last process has ended."""
_LEAST_POLL_S: Final = 0.02
_MOST_POLL_S: Final = 0.25
_POLL_SHARE: Final = 0.01
"""The pause between two polls of a starting server, as a share of the time since the start."""
_ANSWER_S: Final = 2.0
_CHECK_S: Final = 2.0
_LONGEST_CHECK_S: Final = 5.0
"""The most seconds that one check adds to `_silent_s`. A longer check means that the router was paused."""
_SHOWN_S: Final = 5.0
_REASON_S: Final = 2.0


class ChildPlace(NamedTuple):
    """The socket, environment and log relay of a child."""

    socket_path: str
    """The UNIX socket of our server. The path also marks the server's processes (`child/place.py`)."""
    environment: Mapping[str, str]
    """The child's environment. The variables of `ModelEntry.env` are added to it."""
    relay: LogRelay


class Child:
    """Runs one process of a model with its descendants. Used on the event loop of the main thread."""

    def __init__(
        self, entry: ModelEntry, place: ChildPlace, is_end_awaited: Callable[[], bool] = lambda: False
    ) -> None:
        """
        Args:
            is_end_awaited: whether the process is to end or to release its memory once it has no requests.

        Raises:
            OSError: no port is free.
        """
        self.entry = entry
        self.progress = ChildProgress("starting")
        self.has_served = False
        self.cause = UNKNOWN_CAUSE
        """The cause of the failure if the start has failed."""
        self.process: ChildProcess | None = None
        self.exit_code: int | None = None
        """The first process's exit code, or -N after signal N. None while it runs, or if none was started."""
        self.place = place
        self._environment = {**place.environment, **entry.env}
        self.server: OwnServer | ForeignServer
        if entry.foreign is None:
            self.server = OwnServer(entry.arguments, place.socket_path, entry.times)
        else:
            self.server = ForeignServer(entry.foreign, self._environment)
        self.base_url = self.server.base_url
        self.connector: aiohttp.BaseConnector = self.server.connector
        """Connections to the child's server. They are unlimited, and are closed once its processes end."""
        self.headers = self.server.headers
        """Headers with the server's API key. They are sent with all requests, in place of clients' keys."""
        self._log = ChildLog(entry.name, place.relay)
        self._processes = ProcessSet()
        self._listener_pid = 0
        self._wants_stop = asyncio.Event()
        self._is_killed = False
        self._is_end_awaited = is_end_awaited
        self._failure = ""
        """Why the server could not carry out an order. Empty if no order has failed."""
        self._silent_s = 0.0
        """Seconds since the last answer of the server. They are counted once the server has been ready."""
        self._is_hung = False
        self._is_silent = False
        """Whether the server did not answer the poll before its stop."""
        self._started_s = time.monotonic()
        self._reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def fault(self) -> str:
        """The fault that was found in a server after it was ready. Empty if there is none."""
        return f"It has not answered for {self._silent_s:.0f} s" if self._silent_s >= _SHOWN_S else ""

    @property
    def pids(self) -> tuple[int, ...]:
        """The ids of the first process and of the process that listens. In a warm start, these differ."""
        first = 0 if self.process is None else self.process.pid
        return tuple(pid for pid in dict.fromkeys((first, self._listener_pid)) if pid)

    async def run(
        self,
        on_ready: Callable[[], None],
        before_stop: "Callable[[Child], Awaitable[None]] | None" = None,
        on_crash: Callable[[], None] = lambda: None,
    ) -> str | None:
        """Starts the process. Returns when it and all processes that belong to it have ended.

        The task must not be cancelled. To end the process, call `stop` or `kill`.

        Args:
            on_ready: called once the server answers requests.
            before_stop: awaited before a server that answers requests is asked to end.
            on_crash: called when the first process has ended by itself. Its descendants may still run.

        Returns:
            Why the process has failed. None if it was asked to end and did not hang.
        """
        try:
            reason = await self._until_it_ends(on_ready, before_stop)
            if self.has_served and not self._wants_stop.is_set():
                on_crash()
        finally:
            self.exit_code = await self._finish()
        self._reason.set_result(self._describe(reason, self.exit_code))
        return None if self._wants_stop.is_set() and not self._is_hung else self._reason.result()

    async def end_reason(self) -> str:
        """Waits up to 2 s for the end of the process. Returns the reason, or "" if the process still runs."""
        await asyncio.wait({self._reason}, timeout=_REASON_S)
        return self._reason.result() if self._reason.done() else ""

    def fail(self, reason: str) -> None:
        """Ends the process at once, as if it hung. `reason` says why the process has failed."""
        self._failure = reason
        self._wants_stop.set()

    def stop(self) -> None:
        """Asks the process to end. Our own servers complete their running requests first."""
        self._wants_stop.set()

    def drain(self) -> None:
        """The router ends. Our own server ends after its requests. A user's command runs until `stop`.

        If nothing calls `stop`, the command is stopped after `STOP_S`, and killed `ERRORS_S` later.
        """
        if not self.server.is_foreign:
            self.stop()
            return
        loop = asyncio.get_running_loop()
        loop.call_later(STOP_S, self.stop)
        loop.call_later(STOP_S + ERRORS_S, self.kill)

    def signal_group(self, number: int) -> None:
        if self.process is not None and self._processes.is_running(self.process.pid):
            self.process.signal_group(number)

    def kill(self) -> None:
        """Kills all processes of the child at once."""
        self._is_killed = True
        self._wants_stop.set()
        self.signal_group(signal.SIGKILL)
        self._processes.signal(signal.SIGKILL)

    # Its life

    async def _until_it_ends(
        self, on_ready: Callable[[], None], before_stop: "Callable[[Child], Awaitable[None]] | None"
    ) -> str | None:
        """Waits until the process has ended or must be ended. Returns why it must be ended, else None."""
        try:
            obstacle = await self.server.find_obstacle()
            if obstacle is not None or self._wants_stop.is_set():
                self.cause = PortInUseError.cause if obstacle is not None else UNKNOWN_CAUSE
                return obstacle
            if self.server.arguments:
                self._launch()
        except OSError as err:
            self.cause = NOT_STARTED_CAUSE
            return f"The process cannot be started: {err}"
        ended = asyncio.create_task(self._wait_end(), name=f"end of {self.entry.name}")
        stopped = asyncio.create_task(self._wants_stop.wait(), name=f"stop of {self.entry.name}")
        found: asyncio.Task[str | None] = asyncio.create_task(self._wait_ready(), name=f"start of {self.entry.name}")
        try:
            limit_s = self.entry.start_timeout_s
            await asyncio.wait({ended, stopped, found}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if ended.done() or stopped.done():
                return None
            if not found.done():
                self.cause = TIMEOUT_CAUSE
                return f"The start took longer than {limit_s:g} s, its last phase was {self.progress}"
            found.result()
            self.has_served = True
            on_ready()
            found = asyncio.create_task(self._find_hang(), name=f"hang of {self.entry.name}")
            await asyncio.wait({ended, stopped, found}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done() or self._is_killed:
                return None
            if fault := self._failure or await self._describe_hang(found):
                self._is_hung = True
                return fault
            if before_stop is not None:
                await before_stop(self)
            return None
        finally:
            for task in (ended, stopped, found):
                task.cancel()
            await asyncio.gather(ended, stopped, found, return_exceptions=True)

    async def _find_hang(self) -> str:
        """Waits until the server hangs. Returns the watchdog's report, or that the server does not answer.

        A server that stays silent counts as hung, because its watchdog runs on its event loop, and this loop
        may hang. A user's command is not polled, because it may have no watchdog.
        """
        if self.server.is_foreign:
            await asyncio.Event().wait()
        loop, mark = asyncio.get_running_loop(), waiting_mark(self.place.socket_path)
        async with self._session() as session:
            while True:
                begin_s, is_awaited = loop.time(), self._is_end_awaited()
                with suppress(OSError):  # for example a full disk
                    if is_awaited:
                        mark.touch()
                    else:
                        mark.unlink(missing_ok=True)
                await asyncio.sleep(_CHECK_S)
                answer = await self._poll(session)
                if answer is not None and answer.hang:
                    return answer.hang
                passed_s = min(loop.time() - begin_s, _LONGEST_CHECK_S)
                self._silent_s = self._silent_s + passed_s if answer is None else 0.0
                if self._silent_s >= self.server.longest_silence_s:
                    return f"{self.fault} (--engine-watchdog-timeout)"
                if self._silent_s >= GIVES_WAY_S and is_awaited:
                    return f"{self.fault}, and others wait for its memory"

    async def _describe_hang(self, finding_hang: "asyncio.Task[str | None]") -> str:
        """Why the process hangs and must be killed. Empty if it does not hang, so that it can end itself."""
        hang = finding_hang.result() if finding_hang.done() else ""
        if not finding_hang.done() and not self.server.is_foreign:
            async with self._session() as session:
                answer = await self._poll(session)
            self._is_silent = answer is None
            hang = "" if answer is None else answer.hang
        return f"The server hangs. {hang}" if hang else ""

    def _session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
        connector, headers = self.connector, self.server.headers
        return aiohttp.ClientSession(connector=connector, connector_owner=False, timeout=timeout, headers=headers)

    def _launch(self) -> None:
        with self._log.open() as output_fd:
            become = partial(_become, self.server.execute, self._environment, output_fd)
            self.process = ChildProcess.fork(become)
        self._processes.add([self.process.pid])
        if not self._processes.is_running(self.process.pid):  # without a free descriptor its end would go unnoticed
            self.process.kill()
            self.process = None
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def _wait_end(self) -> None:
        """Returns when the first process has ended. Never returns if the server was already running."""
        if self.process is None:
            await asyncio.Event().wait()
        else:
            await self._processes.wait(self.process.pid, None)

    async def _wait_ready(self) -> None:
        async with self._session() as session:
            while (found := await self._poll(session)) is None or not found.is_ready:
                if found is not None:
                    self._listener_pid = self._listener_pid or self.server.find_listener()
                    self.progress = found.progress or self.progress
                elapsed_s = time.monotonic() - self._started_s
                await asyncio.sleep(min(max(_LEAST_POLL_S, elapsed_s * _POLL_SHARE), _MOST_POLL_S))
        self._note_processes()

    async def _poll(self, session: aiohttp.ClientSession) -> ChildReadiness | None:
        """The server's answer to a poll. None if there is no answer."""
        with suppress(aiohttp.ClientError, OSError, ValueError, TimeoutError):
            return await self.server.poll(session)
        return None

    # Its end

    async def _finish(self) -> int | None:
        """Waits until all processes have ended. Returns the first one's exit code, or None without it."""
        code = None
        if self.process is not None:
            has_crashed = self._is_hung or not self._processes.is_running(self.process.pid)
            self._note_processes()
            if not self._is_killed:
                if not self._is_hung:
                    await self._ask_to_end(self.process)
                await self._processes.wait_all(_AFTER_CRASH_S if has_crashed else self._find_stop_s())
            await self._kill_all(self.process)
            await self._log.close(_OUTPUT_S)
            code = self.process.poll()
            if code != 0 and not self.server.is_foreign:
                await asyncio.to_thread(remove_left_behind)
        await self.connector.close()
        self._processes.close()
        socket_path = self.place.socket_path
        for path in (Path(socket_path), waiting_mark(socket_path), control_socket(socket_path)):
            path.unlink(missing_ok=True)
        return code

    def _find_stop_s(self) -> float:
        """Seconds that the process has to end. A silent server has fewer, as it cannot complete requests."""
        if not self._is_silent:
            return self.server.stop_s
        logger.warning("%s does not answer. It is killed after %g s", self.entry.name, ERRORS_S)
        return ERRORS_S

    def _note_processes(self) -> None:
        """Notes the descendants of the first process. Called when the server is ready, and before its stop.

        Once the first process has ended, its descendants can no longer be found. Descendants of a crashed
        start end through their process group, their death pipes or their mark (`router.child.place`).
        """
        self._listener_pid = self.server.find_listener() or self._listener_pid
        self._processes.add(self.pids)
        for pid in self.pids:
            self._processes.add(descendants(pid))

    async def _ask_to_end(self, process: ChildProcess) -> None:
        """Sends SIGTERM to our server, which ends its own processes, or to all processes of a command."""
        is_running = self._processes.is_running(process.pid)
        if not self.server.is_foreign:
            if is_running:
                process.signal(signal.SIGTERM)
            return
        if is_running and (arguments := self.server.stop_words(process.pid)):
            await self._run_stop_command(arguments)
            await self._processes.wait(process.pid, self.server.stop_s)
        self._processes.signal(signal.SIGTERM)
        self._processes.signal(signal.SIGCONT)

    async def _run_stop_command(self, arguments: Sequence[str]) -> None:
        try:
            command = ChildProcess.fork(partial(_become, partial(execute_arguments, arguments), self._environment, 2))
        except OSError as err:
            logger.warning("cmdStop of %s cannot be started: %s", self.entry.name, err)
            return
        self._processes.add([command.pid])
        await self._processes.wait(command.pid, self.server.stop_s)
        command.signal_group(signal.SIGKILL)
        await self._processes.wait(command.pid, _KILL_S)
        command.poll()

    async def _kill_all(self, process: ChildProcess) -> None:
        process.signal_group(signal.SIGKILL)  # before it is reaped: until then its number cannot be another group's
        self._processes.signal(signal.SIGKILL)
        if self.server.is_foreign:
            self._processes.add(await asyncio.to_thread(find_marked, self.place.socket_path))
            self._processes.signal(signal.SIGKILL)
        if not await self._processes.wait_all(_KILL_S):
            logger.warning("processes of %s do not end after SIGKILL", self.entry.name)

    def _describe(self, reason: str | None, code: int | None) -> str:
        """Describes why the process has ended, with a code if it was never ready.

        After a signal, log lines count only if they have a known cause.
        """
        text = reason or ("The process was stopped" if code is None else describe_end(code))
        is_signal = reason is None and code is not None and code < 0
        arguments = [*self.entry.arguments, *self.server.arguments]
        found = self._log.explain_failure(arguments, is_known_only=is_signal, has_served=self.has_served)
        text = f"{text}: {found}" if str(found) else f"{text}."
        if self.has_served:
            return text
        self.cause = self.cause if found.cause == UNKNOWN_CAUSE else found.cause
        line = code_line(self.cause)
        return text if line in text else f"{text.rstrip('.')}. {line}"


def _become(
    execute: Callable[[Mapping[str, str]], NoReturn], environment: Mapping[str, str], output_fd: int
) -> NoReturn:
    """Redirects the standard streams, and executes the program. Called in the new process."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output_fd, 1)
    os.dup2(output_fd, 2)
    execute(environment)
