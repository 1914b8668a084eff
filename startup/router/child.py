"""One model's process: its start, its readiness and its end, with all processes that belong to it."""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, NoReturn
from urllib.parse import urlsplit

import aiohttp

from startup.on_request.child_process import ChildProcess, describe_end, execute_serve
from startup.router.child_log import ChildLog, LogRelay
from startup.router.leftovers import find_marked
from startup.router.model_entry import ForeignCommand, ModelEntry
from startup.router.process_watch import ProcessWatch, descendants
from startup.serve_words import split
from startup.standby.places import peer_of

logger = logging.getLogger(__name__)

STOP_S: Final = 30.0
"""How long a foreign server may take to end after SIGTERM; one of ours, without --shutdown-timeout."""
_ERRORS_S: Final = 5.0
"""How long a server of ours may take to end after that time."""
_AFTER_CRASH_S: Final = 2.0
"""How long the others may take to end after the first process has ended by itself."""
_KILL_S: Final = 10.0
_OUTPUT_S: Final = 0.5
"""How long the last output may take to come after the end."""
_LEAST_POLL_S: Final = 0.02
_MOST_POLL_S: Final = 0.25
_POLL_SHARE: Final = 0.01
"""The pause between two polls as a part of the time since the start."""
_ANSWER_S: Final = 2.0
_KEEP_ALIVE_S: Final = 2.0
"""uvicorn closes idle connections after 5 s."""
_REASON_S: Final = 2.0
_NO_ENDPOINT: Final = "none"
_LOCAL: Final = ("127.0.0.1", "localhost", "::1")
_OK: Final = 200
_SHUTDOWN_TIMEOUT: Final = "--shutdown-timeout"
_PORT: Final = "${PORT}"
_PID: Final = "${PID}"


class ChildProgress(NamedTuple):
    """How far a start is, as its server tells it."""

    phase: str
    fraction: float | None = None
    remaining_s: float | None = None

    def __str__(self) -> str:
        share = "" if self.fraction is None else f" {100 * self.fraction:.0f} %"
        left = "" if self.remaining_s is None else f", {self.remaining_s:.1f} s left"
        return f"{self.phase}{share}{left}"


class ChildPlace(NamedTuple):
    """What a child gets from the router."""

    socket_path: str
    """Where a server of ours listens; also the mark of all its processes (`startup.router.leftovers`)."""
    environment: Mapping[str, str]
    """The whole environment, without the variables of the entry."""
    relay: LogRelay


class Child:
    """One process of a model, on the event loop of the main thread."""

    def __init__(self, entry: ModelEntry, place: ChildPlace) -> None:
        self.entry = entry
        self.progress = ChildProgress("starting")
        self.process: ChildProcess | None = None
        self.place = place
        self._foreign = entry.foreign
        self._log = ChildLog(entry.name, place.relay)
        self._watch = ProcessWatch()
        self._listener_pid = 0
        self._wants_stop = asyncio.Event()
        self._is_killed = False
        self._started_s = time.monotonic()
        self.base_url = "http://localhost"
        """With the port of a foreign command once it has been launched."""
        self.connector = _create_connector(None if entry.foreign else place.socket_path)
        """Its connections, any number; closed when its processes have ended."""
        self._reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def _stop_s(self) -> float:
        """How long it may take to end; one of ours ends its requests with an error after its own limit."""
        return STOP_S if self._foreign is not None else _shutdown_timeout_s(self.entry.words) + _ERRORS_S

    @property
    def pids(self) -> tuple[int, ...]:
        """Its first process, and the one that listens, if that is another one: a standby has forked it."""
        first = 0 if self.process is None else self.process.pid
        return tuple(pid for pid in dict.fromkeys((first, self._listener_pid)) if pid)

    async def run(self, on_ready: Callable[[], None]) -> str | None:
        """Lives from the start to the end of its last process.

        Must not be cancelled: `stop` and `kill` end it.

        Args:
            on_ready: called once requests are answered.

        Returns:
            Why it has failed; None if it was asked to end.
        """
        try:
            reason = await self._live(on_ready)
        finally:
            code = await self._finish()
        text = reason or ("The process was stopped" if code is None else describe_end(code))
        told = self._log.explain_failure(
            [*self.entry.words, *(self._foreign.words if self._foreign else ())],
            is_known_only=reason is None and code is not None and code < 0,
        )
        self._reason.set_result(f"{text}: {told}" if told else f"{text}.")
        return None if self._wants_stop.is_set() else self._reason.result()

    async def end_reason(self) -> str:
        """Why a connection to it failed: waits a moment for its end; empty if it still runs."""
        await asyncio.wait({self._reason}, timeout=_REASON_S)
        return self._reason.result() if self._reason.done() else ""

    def stop(self) -> None:
        """Asks it to end; it answers its running requests before."""
        self._wants_stop.set()

    def kill(self) -> None:
        """Ends it at once."""
        self._is_killed = True
        self._wants_stop.set()
        if self.process is not None and self._watch.is_running(self.process.pid):
            self.process.signal_group(signal.SIGKILL)
        self._watch.signal(signal.SIGKILL)

    async def _live(self, on_ready: Callable[[], None]) -> str | None:
        """Returns when it has ended, or is to end; why, if it is not its own end or a request."""
        try:
            if self._foreign is not None:
                self._foreign = _with_port(self._foreign)
                self.base_url = self._foreign.address
                if await _accepts(self.base_url, only_local=True):
                    return f"Another process listens on {self.base_url}"
            if self._wants_stop.is_set():
                return None
            self._launch()
        except OSError as err:
            return f"The process cannot be started: {err}"
        assert self.process is not None
        ended = asyncio.create_task(self._watch.wait(self.process.pid, None), name=f"end of {self.entry.name}")
        stopped = asyncio.create_task(self._wants_stop.wait(), name=f"stop of {self.entry.name}")
        ready = asyncio.create_task(self._wait_ready(), name=f"start of {self.entry.name}")
        try:
            limit_s = self.entry.start_timeout_s
            await asyncio.wait({ended, stopped, ready}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() and not stopped.done():
                if not ready.done():
                    return f"The start took longer than {limit_s:g} s, its last phase was {self.progress}"
                ready.result()
                on_ready()
                await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
            return None
        finally:
            for task in (ended, stopped, ready):
                task.cancel()
            await asyncio.gather(ended, stopped, ready, return_exceptions=True)

    def _launch(self) -> None:
        """Raises OSError."""
        if self._foreign is None:
            become = partial(execute_serve, [*self.entry.words, "--uds", self.place.socket_path])
        else:
            become = partial(_execute, self._foreign.words)
        environment = {**self.place.environment, **self.entry.env}
        with self._log.open() as output_fd:
            self.process = ChildProcess.fork(lambda: _become(become, environment, output_fd))
        self._watch.add([self.process.pid])

    async def _wait_ready(self) -> None:
        """Returns once requests are answered."""
        timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
        async with aiohttp.ClientSession(connector=self.connector, connector_owner=False, timeout=timeout) as session:
            while not await self._is_ready(session):
                elapsed_s = time.monotonic() - self._started_s
                await asyncio.sleep(min(max(_LEAST_POLL_S, elapsed_s * _POLL_SHARE), _MOST_POLL_S))
        self._note_processes()

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        if self._foreign is not None and self._foreign.check_endpoint == _NO_ENDPOINT:
            return await _accepts(self.base_url)
        path = "/health" if self._foreign is None else self._foreign.check_endpoint
        with suppress(aiohttp.ClientError, OSError, ValueError, TimeoutError):
            async with session.get(f"{self.base_url}{path}") as answer:
                if self._foreign is None and not self._listener_pid:
                    self._listener_pid = _listener_of(self.place.socket_path)
                if answer.status == _OK:
                    return True
                if self._foreign is None:
                    self._note_progress(await answer.json())
        return False

    def _note_progress(self, body: object) -> None:
        match body:
            case {
                "phase": str(phase),
                "progress": None | float() | int() as share,
                "eta_s": None | float() | int() as s,
            }:
                self.progress = ChildProgress(phase, share, s)

    def _note_processes(self) -> None:
        """Takes note of what belongs to it now, at its readiness and before its stop.

        After an end, orphans cannot be found in this way. Those of a start that crashes end with their
        process group, by their own death pipes, or as marked ones (`startup.router.leftovers`).
        """
        if self._foreign is None:
            self._listener_pid = _listener_of(self.place.socket_path) or self._listener_pid
        self._watch.add(self.pids)
        for pid in self.pids:
            self._watch.add(descendants(pid))

    async def _finish(self) -> int | None:
        """Returns when all of its processes have ended: how the first one has; None if there was none."""
        code = None
        if self.process is not None:
            has_crashed = not self._watch.is_running(self.process.pid)
            self._note_processes()
            if not self._is_killed:
                await self._ask_to_end()
                await self._watch.wait_all(_AFTER_CRASH_S if has_crashed else self._stop_s)
            self.process.signal_group(signal.SIGKILL)  # before it is reaped: the group's number is still its own
            self._watch.signal(signal.SIGKILL)
            if self._foreign is not None:
                self._watch.add(await asyncio.to_thread(find_marked, self.place.socket_path))
                self._watch.signal(signal.SIGKILL)
            if not await self._watch.wait_all(_KILL_S):
                logger.warning("processes of %s do not end after SIGKILL", self.entry.name)
            await self._log.close(_OUTPUT_S)
            code = self.process.poll()
            self.process.close()
        await self.connector.close()
        self._watch.close()
        Path(self.place.socket_path).unlink(missing_ok=True)
        return code

    async def _ask_to_end(self) -> None:
        """Sends SIGTERM: to a server of ours, which ends its processes itself, or to all of a foreign one."""
        assert self.process is not None
        if self._foreign is None:
            if self._watch.is_running(self.process.pid):
                self.process.signal(signal.SIGTERM)
            return
        if self._foreign.stop_words and self._watch.is_running(self.process.pid):
            words = [word.replace(_PID, str(self.process.pid)) for word in self._foreign.stop_words]
            await self._run_stop_command(words)
            await self._watch.wait(self.process.pid, self._stop_s)
        self._watch.signal(signal.SIGTERM)
        self._watch.signal(signal.SIGCONT)

    async def _run_stop_command(self, words: Sequence[str]) -> None:
        environment = {**self.place.environment, **self.entry.env}
        output_fd = os.dup(2)
        try:
            command = ChildProcess.fork(lambda: _become(partial(_execute, words), environment, output_fd))
        except OSError as err:
            logger.warning("cmdStop of %s cannot be started: %s", self.entry.name, err)
            return
        finally:
            os.close(output_fd)
        watch = ProcessWatch()
        watch.add([command.pid])
        if not await watch.wait_all(STOP_S):
            command.signal_group(signal.SIGKILL)
            await watch.wait_all(_KILL_S)
        command.poll()
        command.close()
        watch.close()


def _create_connector(socket_path: str | None) -> aiohttp.BaseConnector:
    if socket_path is None:
        return aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S)
    return aiohttp.UnixConnector(socket_path, limit=0, keepalive_timeout=_KEEP_ALIVE_S)


def _shutdown_timeout_s(words: Sequence[str]) -> float:
    """The limit that a server of ours has for its running requests after SIGTERM."""
    limit_s = STOP_S
    for given in split(words, {_SHUTDOWN_TIMEOUT: 1}.get):
        if given.flag == _SHUTDOWN_TIMEOUT and given.values:
            with suppress(ValueError):
                limit_s = float(given.values[0])
    return limit_s


def _with_port(command: ForeignCommand) -> ForeignCommand:
    """The command with its port, a free one if it names none."""
    port = str(command.port or _free_port())

    def fill(text: str) -> str:
        return text.replace(_PORT, port)

    return replace(
        command,
        words=tuple(map(fill, command.words)),
        stop_words=tuple(map(fill, command.stop_words)),
        address=fill(command.address).rstrip("/"),
        port=int(port),
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _accepts(url: str, *, only_local: bool = False) -> bool:
    """Whether a process listens there."""
    parts = urlsplit(url)
    if only_local and parts.hostname not in _LOCAL:
        return False
    with suppress(OSError):
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.close()
        return True
    return False


def _listener_of(path: str) -> int:
    """The process that listens on a UNIX socket; 0 if it cannot be seen."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        connection.connect(path)
        return peer_of(connection)[0]
    return 0


def _become(
    execute: Callable[[Mapping[str, str]], NoReturn], environment: Mapping[str, str], output_fd: int
) -> NoReturn:
    """In the new process."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output_fd, 1)
    os.dup2(output_fd, 2)
    execute(environment)


def _execute(words: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    try:
        os.execvpe(words[0], list(words), environment)
    except OSError as err:
        os.write(2, f"Error: {words[0]} cannot be executed: {err.strerror}\n".encode(errors="replace"))
        raise SystemExit(127) from err
