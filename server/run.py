"""Runs the API process's event loop: HTTP from the first moment, readiness when the engine has made a token."""

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import uvicorn
import uvloop

from server.build import build_app, build_services
from server.config import ModelFiles, ServerConfig
from server.errors import EngineStartError
from server.limits import LimitsConfig
from server.renderers.base import BaseRenderer
from server.security.access import Access
from server.serving.drain import LAST_WORDS_S, Drain
from server.serving.engine_life import EngineHandle, EngineLife
from server.serving.services import Services
from server.serving.start_view import StartView
from server.serving.warm_up import warm_up
from server.telemetry import Telemetry
from server.transport.connection import bounded_connections
from server.transport.graceful_server import GracefulServer
from server.transport.send_buffer import bound_unsent_bytes
from server.types import EngineInfo

logger = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_ENGINE_DIED = 1
_ENGINE_DEATH_GRACE_S = 1.0
"""How long /health tells 503 before a server without an engine ends."""
_SWITCH_INTERVAL_S = 0.0005
"""A thread of the pool keeps the interpreter from the event loop for so long; Python's 5 ms would show in probes."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the launcher hands over."""

    listener: socket.socket
    """Bound and listening."""
    limits: LimitsConfig
    engine: EngineHandle
    """Its process."""
    engine_ready_timeout_s: float
    start: StartView
    span: Callable[..., AbstractContextManager[None]]
    """Records a phase of the start."""
    on_serving: Callable[[], None]
    """Called once, when this server is about to accept connections on the listener."""
    on_ready: Callable[[EngineInfo], None]
    """Called once, when the first real token has been generated."""
    on_drain: Callable[[], None] = lambda: None
    """Called once, when no more requests are taken."""


def run_server(files: ModelFiles, renderer: BaseRenderer, config: ServerConfig, options: RunOptions) -> int:
    """Serves until a signal or the engine's end; returns the exit code.

    Raises:
        EngineStartError: the engine did not become ready.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.freeze()  # looking through what was imported would take 0.1 s, between the responder and the HTTP server
    with options.span("build_app"):
        services = build_services(files, renderer, config, options.engine.connection, options.start, options.limits)
        run = _Run(services, options)
    try:
        return int(uvloop.run(run.main()))
    finally:
        if services.tracer is not None:
            services.tracer.close()


class _Run:
    """One run of the event loop."""

    def __init__(self, services: Services, options: RunOptions) -> None:
        self._services = services
        self._options = options
        self._access = Access(services.config, services.api_keys)
        self._server = GracefulServer(_uvicorn_config(services, self._access))
        services.recovery.num_left = services.config.engine_restarts
        self._drain = Drain(services, self._server.announce_close)
        services.metrics.engine_life.watch_up(lambda: services.engine.is_ready and services.engine.is_alive)
        self._life = EngineLife(services, options.engine, options.engine_ready_timeout_s)
        self._telemetry = Telemetry(services, self._life.look)
        self._start_error: EngineStartError | None = None
        self._stop = asyncio.Event()

    async def main(self) -> int:
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, self._on_signal, signal_number)
        engine = self._services.engine
        await engine.start()
        self._telemetry.start()
        self._access.start()
        bound_unsent_bytes(self._options.listener, self._options.limits.send_buffer_bytes)
        self._options.on_serving()
        serving = asyncio.create_task(self._server.serve(sockets=[self._options.listener]), name="http")
        starting = asyncio.create_task(self._make_ready(), name="make-ready")
        waits = [
            asyncio.create_task(self._stop.wait(), name="stop"),
            serving,
        ]
        living = asyncio.create_task(self._life.run(), name="engine-life")
        await asyncio.wait([*waits, living], return_when=asyncio.FIRST_COMPLETED)
        if living.done() and not starting.done():
            await starting  # notices it, too
        if self._start_error is not None:
            if engine.dead.is_set():
                self._start_error = EngineStartError(await living)
        elif living.done():
            logger.error("the engine died: %s", living.result())
            await asyncio.sleep(_ENGINE_DEATH_GRACE_S)
        else:
            self._options.on_drain()
            await self._drain.run()
        died = living.done() or (engine.dead.is_set() and self._services.recovery.reason is None)
        starting.cancel()
        living.cancel()
        self._server.should_exit = True
        _, http_error, _ = await asyncio.gather(starting, serving, living, return_exceptions=True)
        for task in waits:
            task.cancel()
        self._telemetry.close()
        self._access.close()
        await engine.close()
        if self._start_error is not None:
            raise self._start_error
        if isinstance(http_error, Exception):
            raise EngineStartError(f"the HTTP server failed: {http_error}") from http_error
        return EXIT_ENGINE_DIED if died else EXIT_OK

    async def _make_ready(self) -> None:
        services = self._services
        try:
            with self._options.span("wait_for_engine", waits_for="engine"):
                info = await services.engine.wait_loaded(self._options.engine_ready_timeout_s)
            with self._options.span("first_token"):
                await warm_up(services)
        except EngineStartError as err:
            self._start_error = err
            self._stop.set()
            return
        services.engine.mark_ready()
        gc.freeze()  # what is there by now stays; looking through it takes the collector 30 ms each time
        self._options.on_ready(info)
        self._telemetry.tell_ready()

    def _on_signal(self, signal_number: int) -> None:
        if self._stop.is_set():
            self._server.force_exit = True
            self._drain.hurry()
        self._stop.set()


def _uvicorn_config(services: Services, access: Access) -> uvicorn.Config:
    config = services.config
    uvicorn_config = uvicorn.Config(
        build_app(services),
        loop="none",
        http=bounded_connections(services.limits, access.tls_context),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level=config.uvicorn_log_level,
        access_log=not config.disable_access_log,
        server_header=False,
        timeout_keep_alive=config.timeout_keep_alive_s,
        timeout_graceful_shutdown=LAST_WORDS_S,
    )
    uvicorn_config.load()
    return uvicorn_config
