"""The servers that a child can run: our own server on a UNIX socket, or a user's command on a port."""

import asyncio
import base64
import json
import math
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, NoReturn
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from base.json_depth import read_json
from base.machine.server_ports import find_free_port, list_server_ports
from base.server_settings import SHUTDOWN_TIMEOUT_S, control_socket
from router.child.child_process import execute_serve
from router.child.connections import ForeignConnections, UnixConnections
from router.model_entry import PORT, ForeignCommand, ServerCall, ServerTimes
from startup.errors import NOT_STARTED_CAUSE, with_code
from startup.standby.sockets import peer_of

STOP_S: Final = SHUTDOWN_TIMEOUT_S
"""Seconds from SIGTERM to SIGKILL for a user's command."""
ERRORS_S: Final = 5.0
"""Seconds that our server may take to end, in addition to the time for running requests."""
_USUAL_TIMES: Final = ServerTimes()
_LLAMA_SERVER: Final = "llama-server"
_KEY_VARIABLE: Final = "LLAMA_API_KEY"
LOGIN: Final = "Basic "
"""The beginning of the header Authorization for a user's login. A client's own header does not replace it."""
_NO_ENDPOINT: Final = "none"
_LOCAL: Final = ("127.0.0.1", "localhost", "::1")
_SLEEP_S: Final = 60.0
"""Seconds after which a server that does not fall asleep counts as failed."""
_WAKE_S: Final = 120.0
_WAKE_GIB_S: Final = 10.0
"""Seconds per GiB of weights that a server may take to wake, besides `_WAKE_S`. Level 2 reads the weights."""
_ANSWER_BYTES: Final = 4096
_GIB: Final = 1 << 30
_OK: Final = 200
_READY_POLL_S: Final = 0.05
_PID: Final = "${PID}"


class ChildProgress(NamedTuple):
    """How far a start has come, as the server reports it."""

    phase: str
    fraction: float | None = None
    remaining_s: float | None = None

    def __str__(self) -> str:
        share = "" if self.fraction is None else f" {100 * self.fraction:.0f} %"
        left = "" if self.remaining_s is None else f", {self.remaining_s:.1f} s left"
        return f"{self.phase}{share}{left}"


class ChildReadiness(NamedTuple):
    """A server's answer to the question whether it is ready."""

    is_ready: bool
    progress: ChildProgress | None = None
    hang: str = ""
    """The watchdog's report that the server's engine hangs. Empty if it does not hang."""


class SleepError(Exception):
    """A server did not fall asleep or did not wake. The message says why."""

    def __init__(self, message: str, kind: Literal["error", "timeout", "refused"] = "error") -> None:
        """`kind` is "refused" if the server has rejected the order, and is still in the same state."""
        super().__init__(message)
        self.kind = kind


class OwnServer:
    """`vllm-cli serve` of this installation, with either engine. It ends its own processes."""

    is_foreign: Final = False
    headers: Final[Mapping[str, str]] = MappingProxyType({})

    def __init__(self, arguments: Sequence[str], socket_path: str, times: ServerTimes = _USUAL_TIMES) -> None:
        self.arguments = arguments
        self.base_url = "http://localhost"
        self.connector = UnixConnections(socket_path)
        self._socket_path = socket_path
        self.longest_silence_s = times.silence_s or math.inf
        """Seconds without an answer after which the server counts as hung (--engine-watchdog-timeout)."""
        self._times = times
        self.stop_s = ERRORS_S
        """Seconds that the server may take to end. Once it was ready, --shutdown-timeout is included."""

    async def find_obstacle(self) -> str | None:
        """Why the server cannot start now. None if there is no reason."""
        return None

    def execute(self, environment: Mapping[str, str]) -> NoReturn:
        execute_serve([*self.arguments, "--uds", self._socket_path], environment)

    async def poll(self, session: aiohttp.ClientSession) -> ChildReadiness:
        """Requests the server's readiness. Raises an error if the server does not answer."""
        async with session.get(f"{self.base_url}/health") as answer:
            if answer.status == _OK:
                self.stop_s = self._times.shutdown_s + ERRORS_S
                return ChildReadiness(is_ready=True)
            with suppress(ValueError):  # a body of another form is an answer, too
                return _read_readiness(await answer.json(content_type=None))
        return ChildReadiness(is_ready=False)

    def find_listener(self) -> int:
        """The id of the process that listens on the socket. 0 if there is none, or if its id is unknown."""
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.setblocking(False)
            connection.connect(self._socket_path)
            return peer_of(connection)[0]
        return 0

    def stop_words(self, pid: int) -> list[str]:
        """The command that stops the server. If it is empty, SIGTERM stops the server."""
        return []

    async def sleep(self, level: int) -> None:
        """Puts the server to sleep, and returns when it sleeps. No request may run. Raises SleepError."""
        await self._order({"do": "sleep", "level": level}, _SLEEP_S)

    async def wake(self, size_bytes: int) -> None:
        """Wakes the server, and returns when it is ready. `size_bytes`: its weights. Raises SleepError."""
        await self._order({"do": "wake"}, _WAKE_S + _WAKE_GIB_S * size_bytes / _GIB)

    async def _order(self, order: Mapping[str, Any], limit_s: float) -> None:
        """Sends a line of JSON to the control socket, and reads a line. Clients cannot reach this socket."""
        try:
            reader, writer = await asyncio.open_unix_connection(control_socket(self._socket_path), limit=_ANSWER_BYTES)
        except OSError as err:
            kind: Literal["error", "refused"] = "refused" if isinstance(err, FileNotFoundError) else "error"
            raise SleepError(f"its server has no socket for it ({err.strerror})", kind) from err
        with closing(writer):
            try:
                async with asyncio.timeout(limit_s):
                    writer.write(json.dumps(order).encode() + b"\n")
                    answer = read_json(await reader.readline() or b"{}")
            except TimeoutError:
                raise SleepError(f"no answer within {limit_s:.0f} s", "timeout") from None
            except (OSError, ValueError) as err:
                raise SleepError(f"its server's answer cannot be read: {err}") from err
        match answer:
            case {"ok": True}:
                return
            case {"error": str(error)}:
                raise SleepError(error, "refused")
        raise SleepError("its server ended the connection")


class ForeignServer:
    """A user's command. It has the methods of `OwnServer`."""

    is_foreign: Final = True
    stop_s: Final = STOP_S
    longest_silence_s: Final = math.inf

    def __init__(self, command: ForeignCommand, environment: Mapping[str, str]) -> None:
        """Chooses a port if the command names none. Raises OSError."""
        self._command = _with_port(command)
        self.arguments: Sequence[str] = self._command.arguments
        address = URL(self._command.address, encoded=True)
        self.base_url = str(address.with_user(None))
        self.connector = ForeignConnections(self.base_url)
        is_llama_server = Path(next(iter(command.arguments), "")).name == _LLAMA_SERVER
        key = environment.get(_KEY_VARIABLE, "").partition(",")[0] if is_llama_server else ""
        self.headers: Mapping[str, str] = {"authorization": f"Bearer {key}"} if key else {}
        """The headers of the router's own requests: llama-server's API key, or the login in the address."""
        if address.user:
            login = f"{address.user}:{address.password or ''}".encode()
            self.headers = {"authorization": f"{LOGIN}{base64.b64encode(login).decode()}"}

    async def find_obstacle(self) -> str | None:
        """Describes another process that listens on the command's port. None if no process does."""
        is_local = bool(self.arguments) and urlsplit(self.base_url).hostname in _LOCAL
        text = f"Another process listens on {self.base_url}: end it, or leave out cmd to use it"
        return text if is_local and await _accepts(self.base_url) else None

    def execute(self, environment: Mapping[str, str]) -> NoReturn:
        port = str(self._command.port)
        with_port = {name: value.replace(PORT, port) for name, value in environment.items()}
        execute_arguments(self.arguments, with_port)

    async def poll(self, session: aiohttp.ClientSession) -> ChildReadiness:
        """Requests `checkEndpoint`. The server is ready once the answer is 200."""
        if self._command.check_endpoint == _NO_ENDPOINT:
            return ChildReadiness(await _accepts(self.base_url))
        async with session.get(f"{self.base_url}{self._command.check_endpoint}") as answer:
            await _read_short(answer)
            is_ready = answer.status == _OK
            path = self._command.check_endpoint.partition("?")[0]  # a query may contain a secret
            phase = f"{path} (checkEndpoint) answers {answer.status}"
            return ChildReadiness(is_ready, None if is_ready else ChildProgress(phase))

    def find_listener(self) -> int:
        """Returns 0, because only a process that listens on a UNIX socket can be found."""
        return 0

    def stop_words(self, pid: int) -> list[str]:
        """The command in the user's key `cmdStop`."""
        return [argument.replace(_PID, str(pid)) for argument in self._command.stop_words]

    async def sleep(self, level: int) -> None:
        """Sends the requests of the user's key `sleep`."""
        async with self._session() as session:
            await self._send(session, self._command.sleep_calls)

    async def wake(self, size_bytes: int) -> None:
        """Sends the requests of the user's key `wake`, and waits until the server is ready."""
        async with self._session() as session:
            await self._send(session, self._command.wake_calls)
            try:
                async with asyncio.timeout(_WAKE_S):
                    while not (await self.poll(session)).is_ready:
                        await asyncio.sleep(_READY_POLL_S)
            except (aiohttp.ClientError, OSError) as err:
                raise SleepError(f"it is not ready after `wake`: {type(err).__name__} {err}") from err

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=self.connector, connector_owner=False, headers=self.headers)

    async def _send(self, session: aiohttp.ClientSession, calls: Sequence[ServerCall]) -> None:
        for method, path, body, timeout_s in calls:
            content: dict[str, Any] = {}
            if body:
                content = {"data": body, "headers": {"Content-Type": "application/json"}}
            limit = aiohttp.ClientTimeout(total=timeout_s)
            try:
                async with session.request(method, f"{self.base_url}{path}", timeout=limit, **content) as answer:
                    await _read_short(answer)
                    if not answer.ok:
                        raise SleepError(f"{method} {path} answers {answer.status}", "refused")
            except TimeoutError:
                raise SleepError(f"{method} {path} has no answer within {timeout_s:g} s", "timeout") from None
            except (aiohttp.ClientError, OSError) as err:
                raise SleepError(f"{method} {path} failed: {err}") from err


async def _read_short(answer: aiohttp.ClientResponse) -> None:
    """Reads a body that is not long and not a stream, because unread data would reset the connection."""
    if answer.content_length is not None and answer.content_length <= _ANSWER_BYTES:
        await answer.read()


def execute_arguments(arguments: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Executes a program. Called in a new process."""
    try:
        os.execvpe(arguments[0], list(arguments), environment)
    except OSError as err:
        text = with_code(f"Error: {arguments[0]} cannot be executed: {err.strerror}", NOT_STARTED_CAUSE)
        os.write(2, f"{text}\n".encode(errors="replace"))
        raise SystemExit(127) from err


def _read_readiness(body: object) -> ChildReadiness:
    match body:
        case {"status": "hung", "error": {"message": str(message)}}:
            return ChildReadiness(is_ready=False, hang=message)
        case {
            "phase": str(phase),
            "progress": None | float() | int() as share,
            "eta_s": None | float() | int() as left,
        }:
            return ChildReadiness(is_ready=False, progress=ChildProgress(phase, share, left))
    return ChildReadiness(is_ready=False)


def _with_port(command: ForeignCommand) -> ForeignCommand:
    port = str(command.port or find_free_port(list_server_ports()))

    def fill(text: str) -> str:
        return text.replace(PORT, port)

    return replace(
        command,
        arguments=tuple(map(fill, command.arguments)),
        stop_words=tuple(map(fill, command.stop_words)),
        address=fill(command.address).rstrip("/"),
        check_endpoint=fill(command.check_endpoint),
        port=int(port),
    )


async def _accepts(url: str) -> bool:
    """Whether a process listens at the address."""
    parts = urlsplit(url)
    with suppress(OSError):
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.close()
        return True
    return False
