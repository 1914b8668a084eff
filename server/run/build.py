"""Creates the API process's objects. All other modules get the objects that they use as arguments."""

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from base.access_log import open_access_log
from base.lifecycle import Lifecycle, StartView
from base.program_version import program_version
from base.security.api_keys import ApiKeys
from base.security.credentials import Credentials
from server.engine.process_link.client import EngineClient
from server.http.app import ServerApp
from server.http.routes.endpoint import AppParts
from server.http.transport.connection import Serving
from server.http.transport.server import HttpServer
from server.operation.admission import Admission
from server.operation.drain import ERROR_DELIVERY_S, Drain
from server.operation.engine_monitor import EngineHandle, EngineMonitor, PingedEngine
from server.operation.engine_watchdog import EngineProcesses, EngineWatchdog
from server.operation.metrics.server_metrics import ServerMetrics
from server.operation.models import ServedModels
from server.terms.limits import LimitsConfig
from server.terms.server_config import ServerConfig
from server.terms.types import EngineInfo
from server.text.renderers.renderer import Renderer


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


class ServerObjects:
    """The objects that `server.run.api_process` starts, uses and closes."""

    def __init__(self, renderer: Renderer, config: ServerConfig, options: RunOptions) -> None:
        """Builds all objects of one server. Nothing runs yet."""
        lifecycle = options.lifecycle
        admission = Admission(options.limits)
        engine = EngineClient(options.engine.connection, on_death=lifecycle.engine_ended)
        self.parts = AppParts(
            config=config,
            models=ServedModels(config.served_model_names, engine, root=config.model),
            renderer=renderer,
            engine=engine,
            metrics=ServerMetrics(
                config.served_model_names[0], options.start, renderer, lifecycle, admission.num_rejected
            ),
            lifecycle=lifecycle,
            start=options.start,
            admission=admission,
            api_keys=ApiKeys.from_config(config.network),
            version=program_version(),
        )
        self.credentials = Credentials(config.network, config.tls, self.parts.api_keys)
        serving = Serving(
            handle=ServerApp(self.parts),
            limits=options.limits,
            tls=self.credentials.tls_context,
            keep_alive_s=config.timeout_keep_alive_s,
            delivery_s=ERROR_DELIVERY_S,
            access_log=open_access_log(config.logging),
        )
        self.http = HttpServer(serving)
        self.monitor = EngineMonitor(engine, options.engine, lifecycle, _build_watchdog(self.parts, options))
        self.drain = Drain(
            lifecycle, self.parts.running, engine.fail_running, config.lifecycle, self.http.announce_close
        )


def _build_watchdog(parts: AppParts, options: RunOptions) -> EngineWatchdog:
    engine = PingedEngine(parts.engine, parts.lifecycle, parts.running)
    timeout_s = options.engine_watchdog_timeout_s
    watchdog = EngineWatchdog(engine, options.engine_processes, engine, timeout_s=timeout_s)
    parts.metrics.read_silence_from(lambda: watchdog.silence_s)
    return watchdog
