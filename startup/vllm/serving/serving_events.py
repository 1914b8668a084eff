"""Gives vLLM the launcher's socket, and notifies the launcher when vLLM's server accepts and soon stops.

A single API server runs in the launcher's own process. Several API servers run in children, which notify the
launcher through a pipe.
"""

import os
import select
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from startup.hook import Hook, Name, Text
from startup.imports.finder import wrap_after_import, wraps
from startup.port.responder import StartupResponder
from startup.processes import group_signals
from startup.reports.crash.output_record import OutputRecord
from startup.vllm.serving.server_context import ChildLink, ServerContext

if TYPE_CHECKING:
    from startup.vllm.serving.serving_probes import ServingProbes

_LAUNCHER: Final = "vllm.entrypoints.launchers.launcher"
"""The module in which vLLM binds its port and serves."""

_STARTUP: Final = Name("uvicorn.server", "Server.startup", ("sockets",))
_SHUTDOWN: Final = Name("uvicorn.server", "Server.shutdown")
_APP: Final = Name("uvicorn.config", "Config.loaded_app")
_END_CLIENT: Final = Name("vllm.v1.engine.async_llm", "AsyncLLM.shutdown", ("timeout",))
PORT: Final = Hook(
    "port",
    does="gives vLLM the launcher's socket; reports when vLLM's HTTP server accepts connections and stops",
    without="probes get no answer before vLLM serves; readiness is not known",
    promise="answers from the first 0.2 s on; READY=1 when vLLM serves",
    needs=(
        _STARTUP,
        _SHUTDOWN,
        Name("uvicorn.server", "Server.started"),
        Text(_LAUNCHER, r"\(uvicorn\.Server\)|uvicorn\.Server\(", "uvicorn.Server"),
        Text(_LAUNCHER, r"^    sock\.bind\(", "sock.bind()"),
    ),
    is_essential=True,
)

SERVING_PROBES: Final = Hook(
    "probes while serving",
    does="lets the responder answer `/health`",
    without="`/health` waits for vLLM's event loop",
    promise="probes are answered in milliseconds beside 300 requests",
    needs=(
        Name("uvicorn.server", "Server.main_loop", ()),
        Name("uvicorn.server", "Server.lifespan"),
        Name("uvicorn.server", "ServerState.default_headers"),
        Name("uvicorn.config", "Config.__init__", ("app", "limit_concurrency", "root_path", "server_header")),
        Name("uvicorn.config", "Config.is_ssl"),
        _APP,
        Name("vllm.engine.protocol", "EngineClient.errored"),
    ),
)

DRAIN: Final = Hook(
    "drain",
    does="finishes running requests before vLLM stops its engine; leaves out vLLM's search for processes at its port",
    without="SIGTERM breaks requests off, vLLM waits endlessly for their connections, and its search may fail",
    promise="SIGTERM loses no request and leaves no traceback",
    needs=(
        _APP,
        _END_CLIENT,
        Text(_LAUNCHER, r"partial\(engine_client\.shutdown, timeout=", "a signal calls its shutdown(timeout)"),
    ),
    places={"api", "forkserver"},
)
_FIND_PORT_USER: Final = Name(_LAUNCHER, "find_process_using_port", ("port",))
PORT_USER: Final = DRAIN.part(_FIND_PORT_USER)

_CORE_CLIENT: Final = "vllm.v1.engine.core_client"
WATCHDOG: Final = Hook(
    "engine watchdog",
    does="checks each EngineCore between two steps; if one hangs, logs where, and ends the server",
    without="an engine that hangs is not noticed",
    promise="`--engine-watchdog-timeout`",
    needs=(
        Name(_CORE_CLIENT, "AsyncMPClient._call_utility_async", ("method", "engine")),
        Name(_CORE_CLIENT, "AsyncMPClient.core_engines"),
        Name(_CORE_CLIENT, "AsyncMPClient.client_index"),
        Name(_CORE_CLIENT, "AsyncMPClient.utility_results"),
        Name(_CORE_CLIENT, "BackgroundResources.engine_dead"),
        Name(_CORE_CLIENT, "BackgroundResources.output_queue_task"),
        Text("vllm.v1.engine.core", r"def is_sleeping\(self\)", "EngineCore.is_sleeping"),
    ),
)

_CLIENT: Final = "vllm.v1.engine.async_llm"
SLEEP: Final = Hook(
    "sleep",
    does="lets the router put engines to sleep and wake them, without vLLM's endpoints",
    without="the router stops models instead",
    promise="models change places in a second; clients cannot reach the endpoints",
    needs=(
        Name(_CLIENT, "AsyncLLM.sleep", ("level", "mode")),
        Name(_CLIENT, "AsyncLLM.wake_up", ("tags",)),
        Name(_CLIENT, "AsyncLLM.collective_rpc", ("method",)),
        Name("vllm.config.model", "ModelConfig.enable_sleep_mode"),
    ),
)

_SERVING: Final = b"s"
_READY: Final = b"r"
_HAND_OVER_S: Final = 8.0
"""Seconds that a process waits for the launcher to release the port."""


class ServingEvents:
    """Tells the launcher when vLLM's server accepts connections, and when it stops."""

    def __init__(self, watchdog_timeout_s: float) -> None:
        self._read_fd, event_fd = os.pipe()
        released_fd, self._held_fd = os.pipe()
        self.child_link = ChildLink(event_fd, released_fd, watchdog_timeout_s)

    def watch(
        self,
        *,
        on_serving: Callable[[], None],
        on_ready: Callable[[], None],
        on_stopping: Callable[[], None],
        context: ServerContext,
    ) -> None:
        """Calls `on_serving` before vLLM accepts connections, and `on_ready` afterwards.

        Both are called once, on the main thread's event loop or, if child processes serve, on a separate
        thread. `on_stopping` is called on the main thread before the server stops. With several API servers,
        it is not called, because one of them may stop while the others run.

        Must be called after vLLM's imports, because it starts a thread.
        """
        serve_once, ready_once = _once(on_serving), _once(on_ready)
        _hook_uvicorn(serve_once, ready_once, _once(on_stopping), context)
        group_signals.start_thread("vllm-serving-events", self._follow_children, serve_once, ready_once)

    def _follow_children(self, on_serving: Callable[[], None], on_ready: Callable[[], None]) -> None:
        """Reads events until a child is ready. The pipe has no end, because this process holds both ends."""
        release_port = _once(lambda: os.close(self._held_fd))
        with suppress(OSError):
            while event := os.read(self._read_fd, 1):
                if event == _READY:
                    on_ready()
                    return
                on_serving()
                release_port()


def report_serving(pipes: ChildLink, record: OutputRecord) -> None:
    """Makes a child that runs uvicorn notify the launcher, and wait for the port, before uvicorn accepts."""

    def send(event: bytes) -> None:
        with suppress(OSError):
            os.write(pipes.event_fd, event)

    def take_port() -> None:
        send(_SERVING)
        poll = select.poll()
        poll.register(pipes.released_fd, 0)
        poll.poll(_HAND_OVER_S * 1000)

    _hook_uvicorn(take_port, lambda: send(_READY), lambda: None, ServerContext(record, pipes.watchdog_timeout_s))


def _hook_uvicorn(
    on_serving: Callable[[], None],
    on_ready: Callable[[], None],
    on_stopping: Callable[[], None],
    context: ServerContext,
) -> None:
    """Makes uvicorn call these functions before it accepts, once it accepts, and before it stops."""

    def wrap_startup(startup: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        from startup.vllm.serving.drain import drain_before_shutdown  # imports asyncio

        async def startup_and_notify(self: Any, sockets: Any = None) -> None:
            probes = _create_probes(self, sockets, context.responder)
            if DRAIN.applies:
                is_watched = context.watchdog_timeout_s and WATCHDOG.applies
                watchdog_timeout_s = context.watchdog_timeout_s if is_watched else 0.0
                own = context._replace(watchdog_timeout_s=watchdog_timeout_s, can_sleep=SLEEP.applies)
                drain_before_shutdown(self, sockets, probes, on_stopping, own)
            if probes is not None:
                await probes.start(
                    self, lambda: _startup_and_release(self, startup(self, sockets), context), on_serving
                )
            else:
                on_serving()
                await startup(self, sockets)
            if self.started:
                on_ready()

        return startup_and_notify

    def wrap_shutdown(shutdown: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def notify_and_shutdown(self: Any, *args: Any, **kwargs: Any) -> None:
            on_stopping()
            if DRAIN.applies:
                from startup.vllm.serving.drain import abort_connections

                abort_connections(self)
            await shutdown(self, *args, **kwargs)

        return notify_and_shutdown

    wrap_after_import(_STARTUP, wrap_startup, PORT)
    wrap_after_import(_SHUTDOWN, wrap_shutdown, PORT)


async def _startup_and_release(server: Any, startup: Awaitable[None], context: ServerContext) -> None:
    """Runs uvicorn's startup, then leaves the signals to uvicorn. Connections are passed on afterwards."""
    await startup
    if server.started:
        context.on_accepting()
    if context.signals is not None:
        context.signals.release()


def _create_probes(
    server: Any, listeners: Sequence[socket.socket] | None, responder: StartupResponder | None
) -> "ServingProbes | None":
    """The connection to the responder for probes. None if uvicorn itself accepts connections."""
    from startup.vllm.serving.serving_probes import ServingProbes  # imports asyncio

    probes = ServingProbes(responder) if responder is not None and SERVING_PROBES.applies else None
    return probes if probes is not None and probes.can_serve(server, listeners) else None


@wraps(DRAIN, _END_CLIENT)
def _end_handler_first(shutdown: Callable[..., None]) -> Callable[..., None]:
    """Makes `shutdown` first end the task that waits for outputs, so that vLLM logs no dead engine."""

    def end(self: Any, timeout: float | None = None) -> None:
        handler = getattr(self, "output_handler", None)
        if handler is None or handler.done():
            shutdown(self, timeout=timeout)
            return
        handler.get_loop().call_soon_threadsafe(handler.cancel)
        self.output_handler = None  # to vLLM, a task that has ended is a dead engine
        try:
            shutdown(self, timeout=timeout)
        except Exception:
            self.output_handler = handler  # then vLLM ends this process
            raise

    return end


@wraps(PORT_USER, _FIND_PORT_USER)
def _find_nobody(_: Callable[[int], Any]) -> Callable[[int], None]:
    return lambda port: None


def _once(function: Callable[[], None]) -> Callable[[], None]:
    lock = threading.Lock()

    def call() -> None:
        if lock.acquire(blocking=False):
            function()

    return call


@contextmanager
def reuse_listener(listener: socket.socket) -> Iterator[None]:
    """Inside this context, a socket that is bound to the listener's address duplicates the listener.

    vLLM binds its socket itself, in several places, and passes the socket to its API servers.
    """
    address = listener.getsockname()
    original_bind = socket.socket.bind

    def bind(self: socket.socket, wanted: Any) -> None:
        is_same_kind = (self.family, self.type) == (listener.family, listener.type)
        if is_same_kind and _is_at(wanted, address, self.family):
            os.dup2(listener.fileno(), self.fileno(), inheritable=False)
        else:
            original_bind(self, wanted)

    socket.socket.bind = bind  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        socket.socket.bind = original_bind  # type: ignore[method-assign]


def _is_at(wanted: Any, address: Any, family: int) -> bool:
    if family == socket.AF_UNIX:
        return bool(wanted == address)
    any_host = "::" if family == socket.AF_INET6 else "0.0.0.0"
    host, port = wanted[:2]
    if port != address[1]:
        return False
    return address[0] in (host or any_host, *_addresses(host, family))


def _addresses(host: str, family: int) -> list[str]:
    """The first address of a host name. Empty for an unknown name, which the original `bind` rejects."""
    try:
        found = socket.getaddrinfo(host or None, None, family, socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(address[0]) for *_, address in found[:1]]
