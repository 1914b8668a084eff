"""Lets the responder's process answer `/health` while vLLM serves, because its event loop may be blocked.

The responder accepts on the port and passes every connection but probes to this process
(`startup.probes.acceptor`). Here, on vLLM's event loop, they are given to uvicorn's protocol as if its own
socket had accepted them. If the responder ends or hangs, uvicorn accepts itself.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import responses
from typing import Any, Final, NamedTuple

from startup.hooks.hook import uses
from startup.probes.probe_http import PATH
from startup.probes.probe_link import ProbeLink
from startup.probes.responder import StartupResponder
from startup.probes.serving_messages import HealthAnswer, ServingSettings

logger = logging.getLogger(__name__)

Startup = Callable[[], Awaitable[None]]

_SAMPLE_S: Final = 1.0
"""Interval between two samples; the next one is taken at once when the engine fails."""
_STATUSES: Final = frozenset({200, 503})
"""Statuses that report the server's health; others are errors of the application."""


class AppAnswer(NamedTuple):
    """A complete answer."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    """Names in lower case."""
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """The value of a header; None if it is missing."""
        return next((value for each, value in self.headers if each == name), None)


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

    def can_serve(self, server: Any, sockets: Sequence[socket.socket] | None) -> bool:
        """Whether the responder may accept for this uvicorn server.

        Not with TLS or several API servers, and not if vLLM must see each probe.
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
        """Runs uvicorn's own startup; returns when connections are accepted.

        Args:
            server: uvicorn's server.
            startup: its `startup`.
            accept_without: called before uvicorn accepts itself, if the responder has exited.
        """
        loop = asyncio.get_running_loop()
        with _created_by(loop) as created:
            await startup()
        if server.started and len(created) == 1:
            self._created = created[0]
            self._sampler = HealthSampler(server)
            settings = ServingSettings(
                keep_alive_s=server.config.timeout_keep_alive,
                reports_probes=_has_access_log(),
                wants_realtime=uses("real-time probes"),
            )
            if await self._open(settings):
                server.main_loop = self._ending_after(server.main_loop)
                return
        self._has_ended.set()
        accept_without()
        await _start_serving(created)

    def _ending_after(self, main_loop: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """uvicorn's main loop; after it, uvicorn accepts itself until it shuts down."""

        async def run() -> None:
            try:
                await main_loop()
            finally:
                await self.end()

        return run

    async def find_answer(self) -> HealthAnswer | None:
        try:
            return await self._sampler.current()
        except Exception:  # the loop runs: without a heartbeat it would count as blocked
            logger.exception("the answer of /health is not known: vLLM answers each probe itself")
            return None

    async def connect(self, connection: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(self._created.create_protocol, connection)

    async def accept_without(self) -> None:
        await _start_serving([self._created])

    @property
    def path_prefix(self) -> str:
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


def _is_probe_seen(server: Any) -> bool:
    """With a limit of connections, probes count; with `--middleware`, each may be answered differently."""
    args = getattr(getattr(server.config.app, "state", None), "args", None)
    return server.config.limit_concurrency is not None or bool(getattr(args, "middleware", None))


def _has_access_log() -> bool:
    return logging.getLogger("uvicorn.access").hasHandlers()


class HealthSampler:
    """Asks vLLM's application for its answer to `/health`, without a connection; runs on its event loop."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._config = server.config
        self.root_path: str = self._config.root_path
        """uvicorn logs it before the path."""
        self._sample: AppAnswer | None = None
        """None if the application's answers differ from one to the next."""
        self._sampled_s = float("-inf")
        self._had_failed = False
        self._has_logged = False

    async def current(self) -> HealthAnswer | None:
        """The answer that uvicorn would send; None if it has to answer each probe itself."""
        has_failed = self._has_engine_failed()
        if has_failed != self._had_failed or time.monotonic() - self._sampled_s >= _SAMPLE_S:
            self._had_failed = has_failed
            self._sample = await self._sample_until_steady()
            self._sampled_s = time.monotonic()
        fixed_headers = self._server.server_state.default_headers
        if self._sample is None or (not fixed_headers and self._config.server_header):  # not set yet
            return None
        return _as_answer(self._sample, fixed_headers)

    def _has_engine_failed(self) -> bool:
        """vLLM's `EngineClient.errored`."""
        state = getattr(self._config.app, "state", None)
        return bool(getattr(getattr(state, "engine_client", None), "errored", False))

    async def _sample_until_steady(self) -> AppAnswer | None:
        previous, sample = self._sample, await self._request()
        if sample != previous:
            previous, sample = sample, await self._request()
        if sample == previous:
            return sample
        if not self._has_logged:
            self._has_logged = True
            logger.info("answers of /health differ from one to the next: vLLM answers each probe itself")
        return None

    async def _request(self) -> AppAnswer | None:
        """None for an answer without a fixed length, one that ends the connection, or with another status."""
        answer = await ask_app(self._server, PATH)
        if answer is None or answer.header(b"content-length") is None or answer.header(b"connection") is not None:
            return None
        return answer if answer.status in _STATUSES else None


def _as_answer(sample: AppAnswer, fixed_headers: list[tuple[bytes, bytes]]) -> HealthAnswer:
    lines = [f"HTTP/1.1 {sample.status} {responses.get(sample.status, '')}".encode()]
    lines += (name + b": " + value for name, value in (*fixed_headers, *sample.headers))
    return HealthAnswer(sample.status, b"\r\n".join([*lines, b""]), sample.body)


async def ask_app(server: Any, path: str) -> AppAnswer | None:
    """The answer of uvicorn's `server`; None if the application fails, which uvicorn would log."""
    config = server.config
    path = f"{config.root_path}{path}"
    scope = {
        "type": "http",
        "asgi": {"version": config.asgi_version, "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": config.root_path,
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"user-agent", b"vllm-cli")],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", config.port),
        "state": server.lifespan.state.copy(),
    }
    exchange = _Exchange()
    try:
        await config.loaded_app(scope, exchange.receive, exchange.send)
    except Exception as err:  # noqa: BLE001 - the application's error
        logger.debug("%s failed: %r", path, err)
        return None
    return exchange.answer()


class _Exchange:
    """One request without a body, and its answer."""

    def __init__(self) -> None:
        self._start: dict[str, Any] = {}
        self._body = b""
        self._is_requested = False
        self._is_complete = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if not self._is_requested:
            self._is_requested = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._is_complete.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                self._is_complete.set()

    def answer(self) -> AppAnswer | None:
        if not self._is_complete.is_set():
            return None
        headers = tuple((name.lower(), value) for name, value in self._start.get("headers", []))
        return AppAnswer(self._start["status"], headers, self._body)
