"""Starts the embedded engine and its HTTP server step by step.

First, this process opens the port, on which the responder process answers. Then it starts the forkserver,
which imports torch and transformers on its main thread. Meanwhile this process checks the settings
(preflight), finds the model, requests the engine process, imports the HTTP server and loads the tokenizer.
Only main threads import heavy modules.

In a warm start, this process was forked from a template process, and has all of these modules already. The
forkserver then forks at once, so the engine loads the weights during all further steps.
"""

import importlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from multiprocessing.context import BaseContext
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Final, NoReturn

from base.errors import EngineError, ServerError
from base.exit_codes import ENGINE_DIED, START_FAILED
from base.lifecycle import Lifecycle
from envs import environment
from envs.foreign import expand_home
from envs.registry import env
from server.terms.config import ModelFiles
from server.terms.types import EngineInfo
from server.text.model_files import accepts_images
from startup import start_origin
from startup.embedded import engine_process
from startup.embedded.engine_process import EngineProcess, EngineStarter, use_start_method
from startup.errors import PortInUseError, StartupError
from startup.files.download.obtain import finish_download
from startup.files.model.file_plan import FilePlan, plan_files
from startup.files.model.hub_settings import use_first_endpoint
from startup.files.model.model_request import ModelRequest
from startup.hook import names_without
from startup.imports.heavy import end_stand_ins, import_vision
from startup.imports.learned_imports import learn, learned_imports
from startup.logs.setup import configure_logging
from startup.port.responder_process import OpenChannel, open_plain
from startup.processes import group_signals
from startup.processes.new_program import discard_dormant, fork_dormant
from startup.processes.state import forbid_hub_requests
from startup.reports.causes.phase import SERVING
from startup.reports.crash.output_record import OutputRecord
from startup.reports.timeline.history import StartSubject
from startup.reports.timeline.timeline import PhaseTimeline
from startup.session.preflight.report import PreflightReport
from startup.session.session import ListenAddress, StartSession
from startup.session.task_room import check_task_room
from startup.settings.config import StartupConfig
from startup.storage.bytecode import keep_bytecode
from startup.storage.caches import digest, use_baked_bytecode
from startup.storage.temp_folder import ensure_temp_folder

if TYPE_CHECKING:
    from server.run.api_process import ServerRun
    from server.text.renderers.renderer import Renderer
    from startup.files.download.download_process import DownloadHandle

logger = logging.getLogger(__name__)

_ENGINE_SPAN: Final = "start_engine_process"
_SERVER_MODULES: Final = ("asyncio", "numpy", "jinja2", "huggingface_hub", "transformers", "server.run.api_process")
"""The server, and before it what takes most of its imports."""


def start_embedded(config: StartupConfig) -> int:
    """Starts the server and runs it until it stops. Returns the exit code.

    Raises:
        StartupError: the server cannot start. No process, socket or file of this start is left.
    """
    check_task_room("embedded")
    use_first_endpoint()
    timeline = PhaseTimeline.from_process_start()
    use_baked_bytecode()
    torch = find_spec("torch")
    notice = keep_bytecode(Path(torch.origin).parent) if torch and torch.origin else None
    if start_origin.warm is None:
        with suppress(OSError):  # then the forkserver is a new program, which takes a third of a second more
            fork_dormant(lambda: None, environment.snapshot())
    network = config.server.network
    session = StartSession(
        _subject_of(config), timeline, is_private=network.api_key_everywhere, has_page=network.web_page
    )
    configure_logging(config.logs, role="api", phase=session.phase)
    if notice is not None:
        logger.warning("%s", notice)
    with session:
        start = _EmbeddedStart(config, session)
        try:
            exit_code = start.prepare().run()
        except ServerError as err:
            start.raise_crash(err, START_FAILED)
        if exit_code == ENGINE_DIED:
            start.raise_crash(EngineError(start.lifecycle.reason or "the engine is gone"), exit_code)
        return exit_code


class _EmbeddedStart:
    """One start. Runs in the API process, on its main thread."""

    def __init__(self, config: StartupConfig, session: StartSession) -> None:
        self._config = config
        self._session = session
        self._span = session.timeline.span
        self._download: DownloadHandle | None = None
        self._finding = threading.Lock()
        self._files: ModelFiles | None = None
        self._record: OutputRecord | None = None
        self._engine: EngineStarter | None = None
        self.lifecycle = Lifecycle()

    def raise_crash(self, err: ServerError, exit_code: int) -> NoReturn:
        """Raises the crash digest, because the server cannot start or its engine has died."""
        if self._record is None:
            raise StartupError(str(err)) from err
        from startup.reports.crash.crash_report import (  # noqa: PLC0415 - only after a failure
            build_error,
            describe_crash,
        )

        if self._engine is not None:
            self._engine.record_end()
        process = "engine" if isinstance(err, EngineError) else "API process"
        phase = SERVING if exit_code == ENGINE_DIED else "during the start"
        cause = describe_crash(self._record, process, phase, str(err), has_advice=True)._replace(is_embedded=True)
        raise build_error(cause, self._record, exit_code=exit_code, log_format=self._config.log_format) from err

    def prepare(self) -> "ServerRun":
        """Takes all steps before the event loop runs. Raises ServerError if the server cannot start."""
        if self._config.compile_cache is not None:
            logger.warning("--compile-cache has no effect: the embedded engine compiles nothing")
        listening = self._listen()
        self._session.limit_time(self._config.startup_timeout_s)
        self._session.show_progress()
        with self._span("locate_model"):
            plan = plan_files(ModelRequest.of_start(self._config))
        self._download = self._session.download(plan, self._config.download_timeout_s)
        context = self._prepare_start_method(plan.files)
        is_warm = start_origin.warm is not None and plan.files is not None
        prepare = self._prepare_warm if is_warm else self._prepare_cold
        renderer, engine = prepare(context, plan)
        has_waited = not engine_process.blocks_on_imports(context)
        with nullcontext() if has_waited else self._span(_ENGINE_SPAN, waits_for="forkserver"):
            process = engine.wait_started()
        return self._build_server(listening, renderer, process)

    def _prepare_cold(self, context: BaseContext, plan: FilePlan) -> "tuple[Renderer, EngineStarter]":
        """Prepares a cold start during the forkserver's imports. Requests the engine after the preflight."""
        self._session.prefetch(plan.prefetched, self._config.prefetch)
        self._check(plan)
        if plan.files is not None and self._download is not None and engine_process.blocks_on_imports(context):
            engine = self._begin_engine(context, partial(self._find_files, plan))  # on a thread
            files = self._finish_download(plan)
        else:
            final = plan.files if self._download is None else None
            files = final or self._finish_download(plan)
            engine = self._begin_engine(context, lambda: files)
        with learned_imports():
            return self._prepare_renderer(files), engine

    def _prepare_warm(self, context: BaseContext, plan: FilePlan) -> "tuple[Renderer, EngineStarter]":
        """Prepares a warm start. All modules are imported, so the engine starts before the other steps."""
        files = plan.files
        assert files is not None
        engine = self._begin_engine(context, lambda: files)
        self._session.prefetch(plan.prefetched, self._config.prefetch)
        self._check(plan)
        return self._prepare_renderer(files), engine

    def _listen(self) -> socket:
        network, has_tls = self._config.server.network, self._config.server.tls.ssl_certfile is not None
        when_ready = self._config.listen_when_ready
        address = ListenAddress(network.host, network.port, network.uds, is_tls=has_tls, when_ready=when_ready)
        try:
            return self._session.listen(address, self._prepare_channels, accepts_activation=True)
        except PortInUseError as err:
            from startup.session.preflight.all_checks import run_preflight

            raise run_preflight(self._config).as_error() or err from err

    def _prepare_channels(self) -> OpenChannel:
        """Prepares connections, with or without TLS. Called in the responder's process."""
        if self._config.server.tls.ssl_certfile is None:
            return open_plain()
        from startup.port.tls_channel import open_tls

        return open_tls(self._config.server.tls)

    def _prepare_start_method(self, located: ModelFiles | None) -> BaseContext:
        """Sets the variables of later processes, and starts the forkserver if the method needs one."""
        with self._span("prepare_start_method"):
            ensure_temp_folder()
            self._record = OutputRecord(self._session.create_folder())
            self._record.begin_process("api", is_watched=False)
            context = use_start_method(self._config.start_method)
            if context.get_start_method() != "forkserver":
                discard_dormant()
            if located is not None:  # everything is on disk
                forbid_hub_requests()
            if self._config.engine.trust_remote_code:  # a model's own code may use any module
                os.environ[env.VCLI_LEAVE_OUT.name] = names_without("lean imports")
            engine_process.prepare(context, located, self._config.log_format)
        return context

    def _check(self, plan: FilePlan) -> None:
        """Runs the preflight. Raises StartupError with all of its errors."""

        def check() -> PreflightReport:
            from startup.session.preflight.all_checks import PreflightOptions, run_preflight

            return run_preflight(self._config, options=PreflightOptions(is_listening=True, file_plan=plan))

        self._session.check(check, self._config.preflight)

    def _finish_download(self, plan: FilePlan) -> ModelFiles:
        """Imports modules that nearly all models need, then waits for the download (into the page cache)."""

        def raise_failure() -> None:
            if self._download is not None and self._download.failure is not None:
                self._find_files(plan)  # unless the default model comes from another place

        with learned_imports():
            self._import_server(raise_failure)
        with self._span("resolve_model", waits_for="download"):
            if self._download is not None:
                self._download.stop_asking()
            files = self._find_files(plan)
        forbid_hub_requests()
        return files

    def _find_files(self, plan: FilePlan) -> ModelFiles:
        """Waits for the download. Called on the main thread and on the engine starter's thread."""
        with self._finding:
            self._files = self._files or finish_download(plan, self._download, self._session.state.set_detail)
            return self._files

    def _begin_engine(self, context: BaseContext, files: Callable[[], ModelFiles]) -> EngineStarter:
        """Starts the engine process. With a forkserver, the process starts after the forkserver's imports."""
        with nullcontext() if engine_process.blocks_on_imports(context) else self._span(_ENGINE_SPAN):
            assert self._record is not None
            engine = EngineStarter(context, files, self._config.engine, self._config.logs, self._record)
        self._session.stack.callback(engine.close)
        if self._download is not None:
            self._session.stack.callback(self._download.close)  # closed first: the engine's start may wait for it
        self._engine = engine
        return engine

    def _prepare_renderer(self, files: ModelFiles) -> "Renderer":
        """Imports the HTTP server, loads the tokenizer, and runs the tokenizer once."""
        if self._download is None:
            self._import_server()
        if self._config.renderer.max_images and accepts_images(files.path):
            with self._span("import_vision"):
                import_vision()
        from server.text.renderers.renderer import Renderer

        with self._span("load_tokenizer"):
            renderer = self._session.stack.enter_context(Renderer(files, self._config.renderer))
        with self._span("warm_up_renderer"):
            renderer.warm_up()
        return renderer

    def _import_server(self, before_each: Callable[[], None] = lambda: None) -> None:
        """Imports the HTTP server in parts, so that a failed download ends the start between two of them."""
        with self._span("import_server"):
            for name in _SERVER_MODULES:
                before_each()
                importlib.import_module(name)
        end_stand_ins()

    def _build_server(self, listening: socket, renderer: "Renderer", engine: EngineProcess) -> "ServerRun":
        """Builds the HTTP server, which takes the port from the responder and waits for the engine."""
        from server.run.api_process import RunOptions, ServerRun
        from startup.reports.crash.engine_processes import RecordedProcesses  # noqa: PLC0415 - imports asyncio

        assert self._record is not None
        self.lifecycle.subscribe(lambda state: self._session.drain() if state == "draining" else None)
        options = RunOptions(
            listener=listening,
            limits=self._config.limits,
            engine=engine,
            engine_processes=RecordedProcesses(self._record, ("engine",)),
            engine_watchdog_timeout_s=self._config.engine_watchdog_timeout_s,
            engine_ready_timeout_s=self._config.engine_ready_timeout_s,
            lifecycle=self.lifecycle,
            start=self._session.state,
            span=self._span,
            on_serving=self._session.hand_over,
            on_ready=self._on_ready,
        )
        return ServerRun(renderer, self._config.server, options)

    def _on_ready(self, info: EngineInfo) -> None:
        """Called when the engine has generated its first token."""
        if self._record is not None:
            self._record.keeps_only_errors = True
        self._session.timeline.add("engine", info.spans)
        self._session.notify_ready()
        self._session.finish(info)
        group_signals.start_thread("learn-imports", learn)


def _subject_of(config: StartupConfig) -> StartSubject:
    """The facts about this start that its history and its report need."""
    return StartSubject(
        model=config.server.served_model_names[0],
        start_method=config.start_method,
        packages=("torch", "transformers", "tokenizers", "vllm-cli-server"),
        history_key=lambda versions: history_key(config, versions),
        report_file=config.startup_report,
    )


def history_key(config: StartupConfig, versions: Mapping[str, str]) -> str:
    """A hash of model, versions, start method and settings, on which the duration of a start depends.

    Starts of vLLM use the kind of start (`StartKind`) instead.
    """
    model = asdict(config.model)
    for name in ("model", "tokenizer"):
        folder = Path(expand_home(model[name])) if model[name] else None
        if folder and folder.exists():
            model[name] = str(folder.resolve())
    facts = {
        "model": {name: value for name, value in model.items() if name != "hf_token"},
        "engine": asdict(config.engine),
        "renderer_workers": config.renderer.num_workers,
        "start_method": config.start_method,
        "versions": dict(versions),
    }
    return digest(facts)
