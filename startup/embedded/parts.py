"""The parts of a start of the embedded engine. `start.py` has their order, in a cold and in a warm start."""

import importlib
import logging
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from socket import socket
from typing import TYPE_CHECKING, Final, NoReturn

from base.errors import EngineError, ServerError
from base.exit_codes import ENGINE_DIED
from base.lifecycle import Lifecycle
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
from startup.files.model.model_request import ModelRequest
from startup.hook import names_without
from startup.imports.heavy import end_stand_ins, import_vision
from startup.imports.learned_imports import learn, learned_imports
from startup.port.responder_process import OpenChannel, open_plain
from startup.processes.new_program import discard_dormant
from startup.processes.state import forbid_hub_requests
from startup.reports.crash.output_record import OutputRecord
from startup.reports.crash.phases import SERVING
from startup.session.parts import Part
from startup.session.preflight.report import PreflightReport
from startup.session.session import ListenAddress, StartSession
from startup.settings.config import StartupConfig
from startup.storage.temp_folder import ensure_temp_folder

if TYPE_CHECKING:
    from server.run.api_process import ServerRun
    from server.text.renderers.renderer import Renderer
    from startup.files.download.download_process import DownloadHandle
    from startup.session.parts import Parts

logger = logging.getLogger(__name__)

_ENGINE_SPAN: Final = "start_engine_process"
_SERVER_MODULES: Final = ("asyncio", "numpy", "jinja2", "huggingface_hub", "transformers", "server.run.api_process")
"""The server, and before it what takes most of its imports."""


@dataclass
class EmbeddedStart:
    """What the parts of one start share. Used in the API process, on its main thread."""

    config: StartupConfig
    session: StartSession
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    parts: "Parts[EmbeddedStart]" = field(init=False)
    listening: socket = field(init=False)
    plan: FilePlan = field(init=False)
    download: "DownloadHandle | None" = None
    """None if nothing is downloaded now."""
    context: BaseContext = field(init=False)
    record: OutputRecord | None = None
    """What the engine's process writes. None until it may be started."""
    engine: EngineStarter | None = None
    process: EngineProcess = field(init=False)
    renderer: "Renderer" = field(init=False)
    server: "ServerRun" = field(init=False)
    _finding: threading.Lock = field(default_factory=threading.Lock)
    _files: ModelFiles | None = None
    _has_waited: bool = False

    @property
    def is_warm(self) -> bool:
        """Whether a standby has forked this process, and the model is on disk."""
        return start_origin.warm is not None and self.plan.files is not None

    @property
    def known_files(self) -> ModelFiles | None:
        """The model's files, if they will not change during this start."""
        return self.plan.files if self.download is None or self.is_warm else None

    def find_files(self) -> ModelFiles:
        """Waits for the download. Called on the main thread and on the engine starter's thread."""
        with self._finding:
            found = self._files or finish_download(self.plan, self.download, self.session.state.set_detail)
            self._files = found
            return found

    def finish_download(self) -> ModelFiles:
        """Imports modules that nearly all models need, then waits for the download (into the page cache)."""
        if self._has_waited:
            return self.find_files()
        self._has_waited = True

        def raise_failure() -> None:
            if self.download is not None and self.download.failure is not None:
                self.find_files()  # unless the default model comes from another place

        with learned_imports():
            self.import_server(raise_failure)
        with self.session.timeline.span("resolve_model", waits_for="download"):
            if self.download is not None:
                self.download.stop_asking()
            files = self.find_files()
        forbid_hub_requests()
        return files

    def import_server(self, before_each: Callable[[], None] = lambda: None) -> None:
        """Imports the HTTP server in parts, so that a failed download ends the start between two of them."""
        with self.session.timeline.span("import_server"):
            for name in _SERVER_MODULES:
                before_each()
                importlib.import_module(name)
        end_stand_ins()

    def raise_crash(self, err: ServerError, exit_code: int) -> NoReturn:
        """Raises the crash digest, because the server cannot start or its engine has died."""
        if self.record is None:
            raise StartupError(str(err)) from err
        from startup.reports.crash.crash_report import (  # noqa: PLC0415 - only after a failure
            build_error,
            describe_crash,
        )

        if self.engine is not None:
            self.engine.record_end()
        process = "engine" if isinstance(err, EngineError) else "API process"
        phase = SERVING if exit_code == ENGINE_DIED else "during the start"
        cause = describe_crash(self.record, process, phase, str(err), is_embedded=True)
        raise build_error(cause, self.record, exit_code=exit_code, log_format=self.config.log_format) from err


class Listening(Part[EmbeddedStart]):
    """Listens on the port, and forks the responder."""

    gives = frozenset({"listening"})

    def begin(self) -> None:
        start, config = self.start, self.start.config
        if config.compile_cache is not None:
            logger.warning("--compile-cache has no effect: the embedded engine compiles nothing")
        network, has_tls = config.server.network, config.server.tls.ssl_certfile is not None
        when_ready = config.listen_when_ready
        address = ListenAddress(network.host, network.port, network.uds, is_tls=has_tls, when_ready=when_ready)
        try:
            start.listening = start.session.listen(address, self._prepare_channels, accepts_activation=True)
        except PortInUseError as err:
            from startup.session.preflight.all_checks import run_preflight

            raise run_preflight(config).as_error() or err from err

    def _prepare_channels(self) -> OpenChannel:
        """Prepares connections, with or without TLS. Called in the responder's process."""
        if self.start.config.server.tls.ssl_certfile is None:
            return open_plain()
        from startup.port.tls_channel import open_tls

        return open_tls(self.start.config.server.tls)


class Progress(Part[EmbeddedStart]):
    """Limits the time of the start, and shows its progress."""

    def begin(self) -> None:
        self.start.session.limit_time(self.start.config.startup_timeout_s)
        self.start.session.show_progress()


class Files(Part[EmbeddedStart]):
    """Finds the model's files, and downloads missing and changed ones."""

    gives = frozenset({"plan", "download"})

    def begin(self) -> None:
        start = self.start
        with start.session.timeline.span("locate_model"):
            start.plan = plan_files(ModelRequest.of_start(start.config))
        start.download = start.session.download(start.plan, start.config.download_timeout_s)


class Processes(Part[EmbeddedStart]):
    """Sets what later processes inherit, and starts the forkserver if the start method needs one."""

    needs = frozenset({"plan"})
    gives = frozenset({"context", "record"})

    def begin(self) -> None:
        start, located = self.start, self.start.plan.files
        with start.session.timeline.span("prepare_start_method"):
            ensure_temp_folder()
            start.record = OutputRecord(start.session.create_folder())
            start.record.begin_process("api", is_watched=False)
            start.context = use_start_method(start.config.start_method)
            if start.context.get_start_method() != "forkserver":
                discard_dormant()
            if located is not None:  # everything is on disk
                forbid_hub_requests()
            if start.config.engine.trust_remote_code:  # a model's own code may use any module
                os.environ[env.VCLI_LEAVE_OUT.name] = names_without("lean imports")
            engine_process.prepare(start.context, located, start.config.log_format)


class Preflight(Part[EmbeddedStart]):
    """Prefetches the weights, and checks the start. Errors end it."""

    needs = frozenset({"plan"})

    def begin(self) -> None:
        start = self.start
        start.session.prefetch(start.plan.prefetched, start.config.prefetch)
        start.session.check(self._check, start.config.preflight)

    def _check(self) -> PreflightReport:
        from startup.session.preflight.all_checks import PreflightOptions, run_preflight

        options = PreflightOptions(is_listening=True, file_plan=self.start.plan)
        return run_preflight(self.start.config, options=options)


class WarmEngine(Part[EmbeddedStart]):
    """In a warm start, requests the engine process at once, because nothing is left to import."""

    needs = frozenset({"plan", "context", "record"})
    gives = frozenset({"engine"})

    def begin(self) -> None:
        if self.start.is_warm:
            _request_engine(self.start)


class Engine(Part[EmbeddedStart]):
    """Requests the engine process, which a forkserver forks after its imports, and waits until it runs."""

    needs = frozenset({"plan", "download", "context", "record", "engine"})
    gives = frozenset({"engine", "process"})

    def begin(self) -> None:
        if self.start.engine is None:
            _request_engine(self.start)

    def before_serving(self) -> None:
        start = self.start
        assert start.engine is not None
        waits = engine_process.blocks_on_imports(start.context)
        span = start.session.timeline.span
        with span(_ENGINE_SPAN, waits_for="forkserver") if waits else nullcontext():
            start.process = start.engine.wait_started()


def _request_engine(start: EmbeddedStart) -> None:
    """Starts the engine process. With a forkserver, the process starts after the forkserver's imports."""
    files, config = _find_files(start), start.config
    span = (
        nullcontext() if engine_process.blocks_on_imports(start.context) else start.session.timeline.span(_ENGINE_SPAN)
    )
    with span:
        assert start.record is not None
        start.engine = EngineStarter(start.context, files, config.engine, config.logs, start.record)
    start.session.stack.callback(start.engine.close)
    if start.download is not None:
        start.session.stack.callback(start.download.close)  # closed first: the engine's start may wait for it


def _find_files(start: EmbeddedStart) -> Callable[[], ModelFiles]:
    """A function that returns the model's files. It is called on the thread that starts the engine."""
    files = start.known_files
    if files is None:
        if start.plan.files is not None and engine_process.blocks_on_imports(start.context):
            return start.find_files
        files = start.finish_download()
    return lambda: files


class Tokenizer(Part[EmbeddedStart]):
    """Imports the HTTP server, loads the tokenizer, and runs it once."""

    needs = frozenset({"plan", "download"})
    gives = frozenset({"renderer"})

    def begin(self) -> None:
        start, span = self.start, self.start.session.timeline.span
        files = start.known_files or start.finish_download()
        with nullcontext() if start.is_warm else learned_imports():
            if start.download is None:
                start.import_server()
            if start.config.renderer.max_images and accepts_images(files.path):
                with span("import_vision"):
                    import_vision()
            from server.text.renderers.renderer import Renderer

            with span("load_tokenizer"):
                start.renderer = start.session.stack.enter_context(Renderer(files, start.config.renderer))
            with span("warm_up_renderer"):
                start.renderer.warm_up()


class Server(Part[EmbeddedStart]):
    """Builds the HTTP server, which takes the port from the responder and waits for the engine."""

    needs = frozenset({"listening", "record", "process", "renderer"})
    gives = frozenset({"server"})

    def before_serving(self) -> None:
        from server.run.api_process import RunOptions, ServerRun
        from startup.reports.crash.engine_processes import RecordedProcesses  # noqa: PLC0415 - imports asyncio

        start, config, session = self.start, self.start.config, self.start.session
        assert start.record is not None
        start.lifecycle.subscribe(lambda state: start.parts.stopping() if state == "draining" else None)
        options = RunOptions(
            listener=start.listening,
            limits=config.limits,
            engine=start.process,
            engine_processes=RecordedProcesses(start.record, ("engine",)),
            engine_watchdog_timeout_s=config.engine_watchdog_timeout_s,
            engine_ready_timeout_s=config.engine_ready_timeout_s,
            lifecycle=start.lifecycle,
            start=session.state,
            span=session.timeline.span,
            on_serving=session.hand_over,
            on_ready=self._note_ready,
        )
        start.server = ServerRun(start.renderer, config.server, options)

    def _note_ready(self, info: EngineInfo) -> None:
        """Called on the event loop when the engine has generated its first token."""
        start = self.start
        if start.record is not None:
            start.record.keeps_only_errors = True
        start.session.timeline.add("engine", info.spans)
        start.session.notify_ready()
        start.session.finish(info)
        start.parts.begin_ready()

    def stopping(self) -> None:
        self.start.session.drain()


class Learning(Part[EmbeddedStart]):
    """Keeps the bytecode of this start's imports for later starts."""

    def ready(self) -> None:
        learn()
