"""Runs the API process's event loop: HTTP from the first moment, readiness when the engine has made a token."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import uvicorn
import uvloop

from server.build import build_app, build_services
from server.config import ModelFiles, ServerConfig
from server.errors import EngineStartError
from server.renderers.base import BaseRenderer
from server.serving.loop_heartbeat import LoopHeartbeat
from server.serving.services import Services
from server.serving.start_view import StartView
from server.serving.warm_up import warm_up
from server.types import EngineInfo

logger = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_ENGINE_DIED = 1
_ENGINE_DEATH_GRACE_S = 1.0
"""How long /health tells 503 before a server without an engine ends."""
_SWITCH_INTERVAL_S = 0.0005
"""A thread of the pool keeps the interpreter from the event loop for so long; Python's 5 ms would show in probes."""
_AFTER_DRAIN_S = 2
"""How long cut requests have to receive their error."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the launcher hands over."""

    listener: socket.socket
    """Bound and listening."""
    engine_connection: socket.socket
    engine_ready_timeout_s: float
    start: StartView
    span: Callable[..., AbstractContextManager[None]]
    """Records a phase of the start."""
    on_serving: Callable[[], None]
    """Called once, when this server is about to accept connections on the listener."""
    on_ready: Callable[[EngineInfo], None]
    """Called once, when the first real token has been generated."""


def run_server(files: ModelFiles, renderer: BaseRenderer, config: ServerConfig, options: RunOptions) -> int:
    """Serves until a signal or the engine's end; returns the exit code.

    Raises:
        EngineStartError: the engine did not become ready.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with options.span("build_app"):
        services = build_services(files, renderer, config, options.engine_connection, options.start)
        run = _Run(services, options)
    return int(uvloop.run(run.main()))


class _Run:
    """One run of the event loop."""

    def __init__(self, services: Services, options: RunOptions) -> None:
        self._services = services
        self._options = options
        self._server = _HttpServer(_uvicorn_config(services))
        self._start_error: EngineStartError | None = None
        self._stop = asyncio.Event()

    async def main(self) -> int:
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, self._on_signal, signal_number)
        engine = self._services.engine
        await engine.start()
        heartbeat = self._start_heartbeat()
        self._options.on_serving()
        serving = asyncio.create_task(self._server.serve(sockets=[self._options.listener]), name="http")
        starting = asyncio.create_task(self._make_ready(), name="make-ready")
        waits = [
            asyncio.create_task(self._stop.wait(), name="stop"),
            asyncio.create_task(engine.dead.wait(), name="engine-death"),
            serving,
        ]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        died = engine.dead.is_set()
        if not died:
            await self._drain()
        elif engine.is_ready:
            logger.error("the engine died: %s", engine.error)
            await asyncio.sleep(_ENGINE_DEATH_GRACE_S)
        else:
            await starting
        starting.cancel()
        self._server.should_exit = True
        _, http_error = await asyncio.gather(starting, serving, return_exceptions=True)
        for task in waits:
            task.cancel()
        heartbeat.close()
        await engine.close()
        if self._start_error is not None:
            raise self._start_error
        if isinstance(http_error, Exception):
            raise EngineStartError(f"the HTTP server failed: {http_error}") from http_error
        return EXIT_ENGINE_DIED if died else EXIT_OK

    def _start_heartbeat(self) -> LoopHeartbeat:
        metrics = self._services.metrics.loop
        heartbeat = LoopHeartbeat(metrics.record_lag)
        metrics.watch_worst_lag(lambda: heartbeat.worst_lag_s)
        heartbeat.start()
        return heartbeat

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

    async def _drain(self) -> None:
        """Lets running requests finish, then ends what is left with an error that the client sees."""
        gate = self._services.gate
        gate.close()
        if gate.num_running:
            timeout_s = self._services.config.shutdown_timeout_s
            logger.info("shutting down: %d requests may run for %g s more", gate.num_running, timeout_s)
            if not await gate.wait_idle(timeout_s):
                logger.warning("%d requests are cut short", gate.num_running)
                self._services.engine.fail_running("the server is shutting down")
                await gate.wait_idle(_AFTER_DRAIN_S)

    def _on_signal(self, signal_number: int) -> None:
        if self._stop.is_set():
            self._server.force_exit = True
            self._services.engine.fail_running("the server was stopped")
        self._stop.set()


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handling, which would end the process by the signal instead of with exit code 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _uvicorn_config(services: Services) -> uvicorn.Config:
    config = services.config
    return uvicorn.Config(
        build_app(services),
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level=config.uvicorn_log_level,
        access_log=not config.disable_access_log,
        server_header=False,
        timeout_keep_alive=config.timeout_keep_alive_s,
        timeout_graceful_shutdown=_AFTER_DRAIN_S,
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        ssl_ca_certs=config.ssl_ca_certs,
    )
