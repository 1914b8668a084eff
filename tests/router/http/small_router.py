"""Runs the real application on real sockets, in front of models' servers that a test writes."""

import asyncio
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web

from base.security.api_keys import ApiKeys
from base.server_settings import LoggingConfig, NetworkConfig
from router.child.child import ChildProgress
from router.child.connections import ForeignConnections, UnixConnections
from router.http.app import AppOptions, RouterHttp, create_http
from router.metrics import RouterMetrics
from router.model_entry import ModelEntry
from router.model_pool import ModelPool, ModelRefused, ModelStatus
from router.scheduling.terms import NOTHING, Outcome, State
from server.terms.limits import LimitsConfig

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
_IDLE_S = 60.0
"""So long that the router closes no idle connection to a model during a test."""
_OPTIONS: Final[Mapping[str, Any]] = {
    "limits": LimitsConfig(),
    "logging": LoggingConfig(),
    "tls_context": None,
    "keep_alive_s": 75.0,
    "version": "9.9",
}


_STATES: Final[dict[str, State]] = {"starting": "starting", "asleep": "asleep", "waking": "waking"}
"""Name of a model without a server -> its state."""


class SmallChild:
    """Replaces a model's process. The model's server runs in the test's process."""

    fault = ""
    headers: Mapping[str, str] = {}

    def __init__(self, socket_path: Path | None = None, base_url: str = "http://localhost") -> None:
        self.base_url = base_url
        self.connector: aiohttp.BaseConnector = (
            UnixConnections(str(socket_path), _IDLE_S) if socket_path else ForeignConnections(base_url)
        )
        self.reason = ""

    async def end_reason(self) -> str:
        return self.reason

    async def close(self) -> None:
        await self.connector.close()


class SmallPool:
    """Replaces the model pool. A test starts and stops the models itself."""

    def __init__(self, entries: Sequence[ModelEntry]) -> None:
        self.entries: Mapping[str, ModelEntry] = {entry.name: entry for entry in entries}
        self.children: dict[str, SmallChild] = {}
        self.refused: ModelRefused | None = None
        self.is_draining = False
        self.is_claimed = False
        """Whether other requests wait for the room of all models, so that no model admits a request."""
        self.outcome = Outcome()
        """How the last process of each model has ended."""
        self.starts: deque[dict[str, Any]] = deque()
        self.metrics = RouterMetrics()
        self.num_leases = 0
        self.num_waiting = 0
        self.changed = asyncio.Condition()

    def resolve(self, requested: str) -> ModelEntry | None:
        return next((entry for entry in self.entries.values() if requested in entry.request_names), None)

    def near_names(self, requested: str) -> list[str]:
        return [name for name in self.entries if name[:3] == requested[:3]]

    def is_ready(self, name: str) -> bool:
        return name in self.children and not self.is_claimed

    def child_of(self, name: str) -> SmallChild | None:
        return self.children[name] if self.is_ready(name) else None

    def has_process(self, child: SmallChild) -> bool:
        return child in self.children.values()

    def process_of(self, name: str) -> SmallChild | None:
        return self.children.get(name)

    def progress(self, name: str) -> str:
        return "starting, load_weights 42 %,\n1.3 s left"

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[SmallChild]:
        async with self.changed:
            self.num_waiting += 1
            self.changed.notify_all()
            try:
                await self.changed.wait_for(lambda: self.refused is not None or self.is_ready(name))
            finally:
                self.num_waiting -= 1
        if self.refused is not None:
            raise self.refused
        with self.hold(child := self.children[name]):
            yield child

    @contextmanager
    def hold(self, child: SmallChild) -> Iterator[None]:
        self.num_leases += 1
        try:
            yield
        finally:
            self.num_leases -= 1

    async def start(self, name: str, child: SmallChild) -> None:
        async with self.changed:
            self.children[name] = child
            self.changed.notify_all()

    async def refuse(self, refused: ModelRefused) -> None:
        async with self.changed:
            self.refused = refused
            self.changed.notify_all()

    async def load(self, name: str) -> State:
        async with self.lease(name):
            return "ready"

    async def sleep(self, name: str) -> State:
        if name not in _STATES:
            raise ModelRefused(409, f"{name} cannot sleep")
        return "asleep"

    async def unload(self, name: str) -> State:
        self.children.pop(name, None)
        return "stopped"

    def view(self) -> list[ModelStatus]:
        return [
            ModelStatus(
                entry=entry,
                state="ready" if name in self.children else _STATES.get(name, "stopped"),
                since_unix_s=time.time() - 5,
                progress=ChildProgress("load_weights", 0.42, 1.3) if name == "starting" else None,
                memory_bytes=1 << 20 if name in self.children else None,
                size_bytes=1 << 21,
                takes_images=None,
                can_sleep=False,
                since_s=0.0,
                need=NOTHING,
                outcome=self.outcome,
                retry_at_s=None,
                num_running=self.num_leases,
                num_waiting=self.num_waiting,
                num_starts=1,
                last_start_s=0.5,
                retry_after_s=None,
                pid=None,
            )
            for name, entry in self.entries.items()
        ]

    def router_status(self) -> dict[str, Any]:
        sizes = {"memory_bytes": 1, "standby_bytes": 0, "needed_bytes": 0, "memory_budget_bytes": None}
        return {"uptime_s": 1.0, "max_running": None, **sizes}


class SmallRouter:
    """A router that listens on a TCP port."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self.pool: SmallPool
        self.http: RouterHttp
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(
        self,
        *names: str,
        running: Handler | None = None,
        entries: Sequence[ModelEntry] = (),
        keys: Sequence[str] = (),
        pool: ModelPool | None = None,
        **options: Any,
    ) -> None:
        """Serves models with these names, or those of `pool`. The first one runs if `running` is given.

        `options` are those of the application and its network.
        """
        self.pool = SmallPool([*entries, *(ModelEntry(name=name) for name in names)])
        of_app = {**_OPTIONS} | {name: options.pop(name) for name in AppOptions.__dataclass_fields__ if name in options}
        app_options = AppOptions(network=NetworkConfig(**options), api_keys=ApiKeys(tuple(keys)), **of_app)
        self.http = create_http(pool or self.pool, app_options)  # type: ignore[arg-type]
        server = self.http.server
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        serving = asyncio.create_task(server.serve(listener))
        self._stack.push_async_callback(asyncio.gather, serving)
        self._stack.callback(server.stop.set)
        if running is not None:
            await self.start_model(names[0], running)

    async def start_model(self, name: str, handler: Handler) -> SmallChild:
        """Starts the model's server on a UNIX socket."""
        child = self.create_child()
        server = web.Server(handler, handler_cancellation=True, max_line_size=1 << 17)  # type: ignore[arg-type]
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.UnixSite(runner, child.connector.path).start()  # type: ignore[attr-defined]
        await self.pool.start(name, child)
        return child

    async def start_raw_model(
        self, name: str, handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    ) -> SmallChild:
        """Starts a model's server whose handler reads and writes bytes."""
        child = self.create_child()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with closing(writer):
                await handler(reader, writer)

        server = await asyncio.start_unix_server(handle, child.connector.path)  # type: ignore[attr-defined]
        self._stack.callback(server.close)
        await self.pool.start(name, child)
        return child

    def create_child(self) -> SmallChild:
        """Creates a child. Its connections close after its server, because aiohttp waits for unread bytes."""
        child = SmallChild(self.folder / f"{time.monotonic_ns()}.sock")
        self._stack.push_async_callback(child.close)
        return child

    async def connect(self, *sent: bytes, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connects a client that reads and writes bytes, and sends these bytes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **kwargs)
        self._stack.callback(lambda: writer.transport.abort())  # holds the writer, not only its transport
        writer.writelines(sent)
        return reader, writer


def post(path: str, body: bytes, *headers: str, version: str = "1.1") -> bytes:
    """The bytes of a request."""
    lines = [f"POST {path} HTTP/{version}", "Host: h", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def eventually(is_true: Callable[[], bool]) -> None:
    """Waits until the condition is true."""
    async with asyncio.timeout(30):
        while not is_true():
            await asyncio.sleep(0.005)


def metric_values(pool: SmallPool | ModelPool, name: str) -> dict[tuple[str, ...], float]:
    """The samples of one of the router's metrics: values of the labels in order, without `le` -> value."""
    samples = [sample for family in pool.metrics.collect() for sample in family.samples]
    return {tuple(s.labels.values()): s.value for s in samples if s.name == f"vllm_cli:router_{name}"}
