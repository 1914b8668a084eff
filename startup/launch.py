"""The start: socket, start method, preflight, engine process, then the server; the one place that knows them all.

Order matters. The socket listens first and is answered from then on. The forkserver is started next and imports
torch and transformers on its main thread while this process checks and finds the model and imports the HTTP side.
Nothing heavy is imported in a second thread, ever.
"""

import logging
import os
from contextlib import ExitStack, closing
from multiprocessing.context import BaseContext
from socket import socket
from typing import TYPE_CHECKING

from envs.registry import env
from server.config import ModelFiles
from server.errors import ServerError
from server.model_files.vision_models import accepts_images
from server.types import EngineInfo
from startup.config import StartupConfig
from startup.deadline import StartDeadline
from startup.engine import process as engine_process
from startup.engine.supervisor import EngineSupervisor
from startup.errors import EngineBootError, PortInUseError, StartupError
from startup.imports import import_vision
from startup.logs.setup import configure_logging
from startup.model.prefetch_plan import plan_files, plan_libraries
from startup.prefetch.process import Prefetch, PrefetchHandle
from startup.preflight.model_place import locate_files
from startup.preflight.report import PreflightReport
from startup.probes import listener
from startup.probes.responder import OpenChannel, StartupResponder, open_plain
from startup.probes.start_state import StartState
from startup.start_key import subject_of
from startup.start_method import use_start_method
from startup.temp_folder import ensure_temp_folder
from startup.timeline.live_progress import LiveProgress
from startup.timeline.timeline import PhaseTimeline

if TYPE_CHECKING:
    from startup.systemd.service_manager import ServiceManager

logger = logging.getLogger(__name__)


def launch(config: StartupConfig) -> int:
    """Starts the server and runs it to its end; returns the exit code.

    Raises:
        StartupError: the server cannot start; nothing is left behind.
    """
    timeline = PhaseTimeline.from_process_start()
    start = _Launch(config, timeline)
    configure_logging(config.logs, role="api", phase=start.phase)
    return start.run()


class _Launch:
    """One start; lives in the API process, on its main thread."""

    def __init__(self, config: StartupConfig, timeline: PhaseTimeline) -> None:
        self._config = config
        self._timeline = timeline
        self._state = StartState(subject_of(config), timeline, is_private=config.server.api_key_everywhere)
        self._stack = ExitStack()
        self._manager = self._meet_manager()

    def phase(self) -> str:
        """What this process is at, for its log."""
        return self._state.phase

    @property
    def _is_tls(self) -> bool:
        return self._config.server.ssl_certfile is not None

    def run(self) -> int:
        with self._stack:
            listening = self._listen()
            responder = self._stack.enter_context(StartupResponder(listening, self._state, self._prepare_channels))
            self._timeline.on_change = lambda: self._tell(responder)
            deadline = self._stack.enter_context(StartDeadline(self._config.startup_timeout_s, self._describe_phase))
            live = self._stack.enter_context(LiveProgress(self._state.meter))
            try:
                return self._run(listening, responder, deadline, live)
            except (ServerError, StartupError) as err:
                self._state.fail(str(err))
                if self._manager:
                    self._manager.tell_failure(str(err))
                raise EngineBootError(str(err)) from err if isinstance(err, ServerError) else err

    def _run(self, listening: socket, responder: StartupResponder, deadline: StartDeadline, live: LiveProgress) -> int:
        with self._timeline.span("locate_model"):
            located = locate_files(self._config.model)
        context = self._prepare_start_method(located)
        prefetch = self._read_ahead(located)
        self._check()
        files = self._resolve_model()
        if files != located:
            prefetch = self._read_ahead(files)
        engine = None if engine_process.blocks_on_imports(context) else self._start_engine(context, files)
        with self._timeline.span("import_server"):
            from server.renderers.registry import build_renderer
            from server.run import RunOptions, run_server
        if self._config.renderer.max_images and accepts_images(files.path):
            with self._timeline.span("import_vision"):
                import_vision()
        with self._timeline.span("load_tokenizer"):
            renderer = self._stack.enter_context(build_renderer(files, self._config.renderer))
        engine = engine or self._start_engine(context, files)
        with self._timeline.span("warm_up_renderer"):
            renderer.warm_up()

        def on_ready(info: EngineInfo) -> None:
            deadline.cancel()
            live.close()
            self._timeline.add("engine", info.spans)
            address = listener.describe(listening, is_tls=self._is_tls)
            self._state.finish(info, prefetch.result(), address)
            if self._manager:
                self._manager.tell_ready(f"ready: {address}")

        options = RunOptions(
            listener=listening,
            limits=self._config.limits,
            engine=engine,
            engine_ready_timeout_s=self._config.engine_ready_timeout_s,
            start=self._state,
            span=self._timeline.span,
            on_serving=responder.hand_over,
            on_ready=on_ready,
            on_drain=self._drain,
        )
        return run_server(files, renderer, self._config.server, options)

    def _meet_manager(self) -> "ServiceManager | None":
        if env.NOTIFY_SOCKET.get() is None:
            return None
        from startup.systemd.service_manager import ServiceManager

        return self._stack.enter_context(closing(ServiceManager.from_environment()))

    def _tell(self, responder: StartupResponder) -> None:
        responder.tell(self._state.snapshot())
        if self._manager and (running := self._timeline.running):
            self._manager.tell_status(running.name.replace("_", " "))

    def _drain(self) -> None:
        self._state.drain()
        if self._manager:
            self._manager.tell_stopping("finishing what runs")

    def _listen(self) -> socket:
        server = self._config.server
        with self._timeline.span("listen"):
            try:
                listening = self._stack.enter_context(
                    _take_socket() or listener.listen(host=server.host, port=server.port, uds=server.uds)
                )
            except PortInUseError as err:
                from startup.preflight.run import run_preflight

                raise _combine(run_preflight(self._config), err) from err
        self._timeline.mark("listening")
        return listening

    def _prepare_channels(self) -> OpenChannel:
        """In the responder's process."""
        if not self._is_tls:
            return open_plain()
        from startup.probes.tls_channel import open_tls

        return open_tls(self._config.server)

    def _prepare_start_method(self, located: ModelFiles | None) -> BaseContext:
        with self._timeline.span("prepare_start_method"):
            ensure_temp_folder()
            os.environ[env.VCLI_LOG_FORMAT.name] = self._config.log_format  # for the forkserver
            context = use_start_method(self._config.start_method)
            if located is not None:  # the hub's client reads it when it is imported
                os.environ[env.HF_HUB_OFFLINE.name] = "1"
            if self._config.engine.trust_remote_code:
                os.environ[env.VCLI_LEAN_IMPORTS.name] = "0"  # nobody knows what a model's own code uses
            engine_process.prepare(context, located)
        return context

    def _read_ahead(self, files: ModelFiles | None) -> PrefetchHandle:
        """Torch's libraries come first, as the imports do; what is resident costs nothing."""
        paths = (*plan_libraries(), *(plan_files(files) if files else ()))
        return self._stack.enter_context(Prefetch.start(paths, self._config.prefetch))

    def _check(self) -> None:
        with self._timeline.span("preflight"):
            from startup.preflight.run import PreflightOptions, run_preflight

            self._state.remember_past()
            report = run_preflight(self._config, options=PreflightOptions(is_listening=True))
        for finding in report.warnings:
            logger.warning("%s", finding.message)
        if report.errors:
            raise _combine(report)

    def _resolve_model(self) -> ModelFiles:
        with self._timeline.span("resolve_model"):
            from startup.model.source import resolve_model

            return resolve_model(self._config.model, self._state.tell_detail)

    def _start_engine(self, context: BaseContext, files: ModelFiles) -> EngineSupervisor:
        waits_for = "forkserver" if engine_process.blocks_on_imports(context) else None
        with self._timeline.span("start_engine_process", waits_for=waits_for):
            engine = EngineSupervisor(context, files, self._config.engine, self._config.logs)
        self._stack.callback(engine.close)
        return engine

    def _describe_phase(self) -> str:
        return str(self._state.progress()["phase"])


def _take_socket() -> socket | None:
    """What a service manager listens on for this process, if one does."""
    if env.LISTEN_PID.get() is None:
        return None
    from startup.systemd.socket_activation import take_socket

    return take_socket()


def _combine(report: PreflightReport, err: StartupError | None = None) -> StartupError:
    """One error for all that the preflight found, or the one that is there anyway if it found nothing."""
    messages = [finding.message for finding in report.errors]
    if not messages and err is not None:
        return err
    if len(messages) == 1:
        return StartupError(messages[0])
    return StartupError("\n  ".join([f"{len(messages)} faults:", *messages]))
