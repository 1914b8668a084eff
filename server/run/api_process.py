"""Runs the API process on an event loop. It serves HTTP at once, and is ready after the first token."""

import asyncio
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass

import uvloop

from base import exit_codes
from base.access_log import open_access_log
from base.errors import EngineStartError
from base.lifecycle import Lifecycle, StartView
from base.machine.libc import trim_heap
from base.program_version import program_version
from base.security.api_keys import ApiKeys
from base.security.credentials import Credentials
from base.server_settings import SAME_SIGNAL_S, SWITCH_INTERVAL_S
from server.engine.process_link.client import EngineClient
from server.http.app import ServerApp
from server.http.routes.endpoint import AppParts
from server.http.transport.connection import Serving
from server.http.transport.server import BACKLOG, HttpServer, bound_unsent_bytes
from server.operation.admission import Admission
from server.operation.drain import ERROR_DELIVERY_S, Drain
from server.operation.engine_monitor import EngineHandle, EngineMonitor, PingedEngine, log_stats, make_ready
from server.operation.engine_watchdog import EngineProcesses, EngineWatchdog
from server.operation.metrics.server_metrics import ServerMetrics
from server.operation.models import ServedModels
from server.terms.limits import LimitsConfig
from server.terms.server_config import ServerConfig
from server.terms.types import EngineInfo
from server.text.renderers.renderer import Renderer

logger = logging.getLogger(__name__)

_TRIM_INTERVAL_S = 60.0
_REASON_S = 2.0
"""How many seconds the reason of the engine's end may take, if a signal stops the server at that moment."""
_YOUNG_OBJECTS = 20_000
"""The number of new objects after which Python collects garbage. With Python's default of 700, the chats of
300 clients cause full collections. Each blocks the loop for 7 ms."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The objects and settings that the launcher passes to the server."""

    listener: socket.socket
    """A bound socket. If it does not listen yet, the server starts that when the server is ready."""
    limits: LimitsConfig
    engine: EngineHandle
    """The engine's process, with the interface for the server."""
    engine_processes: EngineProcesses
    """The engine's process, with the interface for the watchdog."""
    engine_watchdog_timeout_s: float
    engine_ready_timeout_s: float
    lifecycle: Lifecycle
    """The state of the server, which is `starting` at first. The launcher may subscribe to changes."""
    start: StartView
    span: Callable[..., AbstractContextManager[None]]
    """Returns a `with` block that records a phase of the start."""
    on_serving: Callable[[], None]
    """Called once, when the server is about to accept connections on `listener`."""
    on_ready: Callable[[EngineInfo], None]
    """Called once, when the first real token has been generated."""


class ServerRun:
    """Creates the objects of a server, which get what they use as arguments, and runs them on the loop."""

    def __init__(self, renderer: Renderer, config: ServerConfig, options: RunOptions) -> None:
        """Sets up thread switches and garbage collection in this process, and builds the HTTP application."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        gc.set_threshold(_YOUNG_OBJECTS)
        gc.freeze()  # collecting all imported objects later would delay the hand-over by 0.1 s
        self._options = options
        self._lifecycle = options.lifecycle
        self._is_stopped = asyncio.Event()
        """Set by the first signal."""
        self._stopped_s = 0.0
        """The time of the first signal, on the monotonic clock."""
        self._may_accept = asyncio.Event()
        if options.listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._may_accept.set()
        with options.span("build_app"):
            self._build(renderer, config)

    def _build(self, renderer: Renderer, config: ServerConfig) -> None:
        """Creates all objects. Nothing runs yet."""
        options, lifecycle = self._options, self._lifecycle
        admission = Admission(options.limits)
        engine = EngineClient(options.engine.connection, on_death=lifecycle.engine_ended)
        names = config.served_model_names
        self._parts = parts = AppParts(
            config=config,
            models=ServedModels(names, engine, root=config.model),
            renderer=renderer,
            engine=engine,
            metrics=ServerMetrics(names[0], options.start, renderer, lifecycle, admission.num_rejected),
            lifecycle=lifecycle,
            start=options.start,
            admission=admission,
            api_keys=ApiKeys.from_config(config.network),
            version=program_version(),
        )
        self._credentials = Credentials(config.network, config.tls, parts.api_keys)
        serving = Serving(
            handle=ServerApp(parts),
            limits=options.limits,
            held=admission.held,
            tls=self._credentials.tls_context,
            keep_alive_s=config.timeout_keep_alive_s,
            delivery_s=ERROR_DELIVERY_S,
            access_log=open_access_log(config.logging),
        )
        self._http = HttpServer(serving)
        pinged, timeout_s = PingedEngine(engine, lifecycle, parts.running), options.engine_watchdog_timeout_s
        watchdog = EngineWatchdog(pinged, options.engine_processes, pinged, timeout_s=timeout_s)
        parts.metrics.read_silence_from(lambda: watchdog.silence_s)
        self._monitor = EngineMonitor(engine, options.engine, lifecycle, watchdog)
        self._drain = Drain(lifecycle, parts.running, engine.fail_running, config.lifecycle, self._http.announce_close)

    def run(self) -> int:
        """Serves until a signal or the engine's end. Returns the exit code.

        Raises:
            EngineStartError: the engine did not become ready.
        """
        with closing(self._main()) as main:
            return int(uvloop.run(main))

    async def _main(self) -> int:
        await self._open()
        serving = asyncio.create_task(self._serve(), name="http")
        engine = asyncio.create_task(self._follow_engine(), name="engine")
        stopping = asyncio.create_task(self._is_stopped.wait(), name="stop")
        trimming = asyncio.create_task(_trim_heap_regularly(), name="trim-heap")
        await asyncio.wait([stopping, serving, engine], return_when=asyncio.FIRST_COMPLETED)
        was_stopped = not engine.done()
        if was_stopped:
            await self._drain.run()
            self._monitor.poll()
            if self._parts.engine.dead.is_set() or self._lifecycle.state == "dead":
                await asyncio.wait([engine], timeout=_REASON_S)
        if engine.done() and engine.exception() is None:
            logger.error("the engine died: %s", self._lifecycle.reason)
            if not was_stopped:
                await self._drain.run_dead()
        exit_code = exit_codes.ENGINE_DIED if self._lifecycle.state == "dead" else exit_codes.OK
        for task in (engine, stopping, trimming):
            task.cancel()
        self._http.stop.set()
        self._may_accept.set()
        ends = await asyncio.gather(engine, serving, stopping, trimming, return_exceptions=True)
        await self._close()
        if isinstance(start_error := ends[0], Exception):
            raise start_error
        if isinstance(http_error := ends[1], Exception):
            raise EngineStartError(f"the HTTP server failed: {http_error}") from http_error
        return exit_code

    async def _open(self) -> None:
        await self._parts.engine.start()
        self._parts.metrics.heartbeat.start(self._monitor.poll)
        self._credentials.start()
        bound_unsent_bytes(self._options.listener, self._options.limits.send_buffer_bytes)

    async def _serve(self) -> None:
        """Accepts connections as soon as the socket listens, which may be immediately."""
        await self._may_accept.wait()
        if self._http.stop.is_set():
            return
        self._options.on_serving()
        await self._http.serve(self._options.listener)

    async def _close(self) -> None:
        self._parts.metrics.heartbeat.close()
        self._credentials.close()
        await self._parts.engine.close()

    async def _follow_engine(self) -> None:
        """Makes the server ready. Returns once the engine has ended.

        Raises:
            EngineStartError: the engine did not become ready.
        """
        lifecycle, monitor, parts = self._lifecycle, self._monitor, self._parts
        try:
            info = await make_ready(parts, self._options.span, timeout_s=self._options.engine_ready_timeout_s)
            if lifecycle.state == "dead":  # the engine's process is ending, although it sent the token
                raise EngineStartError(lifecycle.reason)
        except EngineStartError as err:
            if parts.engine.dead.is_set():
                await monitor.run()  # finds the reason of the end
                raise EngineStartError(lifecycle.reason) from err
            if lifecycle.state != "dead":
                lifecycle.engine_ended(str(err))
            raise
        for number in (signal.SIGTERM, signal.SIGINT):  # until now, a signal has ended the start
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        self._enter_ready(info)
        logging_stats = asyncio.create_task(log_stats(parts.config.logging, parts.engine, parts.metrics), name="stats")
        try:
            await monitor.run()
        finally:
            logging_stats.cancel()

    def _enter_ready(self, info: EngineInfo) -> None:
        is_draining = self._lifecycle.state == "draining"
        self._lifecycle.engine_ready()
        if is_draining:
            return
        if not self._may_accept.is_set():
            self._listen()
        gc.freeze()  # objects that exist by now stay; collecting them would take 30 ms each time
        self._options.on_ready(info)
        trim_heap()  # imports have left 25 MiB of free heap; giving it back takes 2 ms

    def _listen(self) -> None:
        listener = self._options.listener
        try:
            listener.listen(BACKLOG)
        except OSError as err:
            host, port = listener.getsockname()[:2]
            raise EngineStartError(f"cannot listen on {host}:{port}: {err.strerror}") from err
        self._may_accept.set()

    def _on_signal(self) -> None:
        """Drains the server. A second signal ends the server without waiting for requests."""
        now = time.monotonic()
        if self._is_stopped.is_set() and now - self._stopped_s >= SAME_SIGNAL_S:
            self._http.is_forced = True
            self._drain.stop_waiting()
        if not self._is_stopped.is_set():
            self._stopped_s = now
        self._is_stopped.set()


async def _trim_heap_regularly() -> None:
    """Returns free heap to the system, up to 25 MiB after bursts. If nothing is free, this takes 0.3 ms."""
    while True:
        await asyncio.sleep(_TRIM_INTERVAL_S)
        trim_heap()
