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
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile

from base.machine.file_stamps import read_folder
from base.wording import list_some
from envs.environment import snapshot
from envs.registry import env
from envs.variable import EnvError
from startup import start_origin
from startup.compiled_models.compile_cache import CompileCache
from startup.errors import StartupError, is_of_machine
from startup.files.model.hub_settings import use_first_endpoint
from startup.hook import UnfitHookError, uses
from startup.logs.setup import configure_own_loggers
from startup.processes.new_program import discard_dormant, start_resource_tracker
from startup.processes.quick_end import end_without_finalizing
from startup.reports.timeline.timeline import PhaseTimeline
from startup.session.preflight.all_checks import PreflightOptions
from startup.session.preflight.report import PreflightReport
from startup.session.session import ListenAddress, StartSession
from startup.session.task_room import check_task_room
from startup.storage.bytecode import keep_bytecode
from startup.storage.caches import add_baked_inspections, use_baked_bytecode
from startup.storage.temp_folder import ensure_temp_folder
from startup.vllm.fork.forkserver import forkserver_environment, start_forkserver
from startup.vllm.fork.kernel_processes import KernelProcesses, kernel_use
from startup.vllm.fork.preload_plan import plan_preload
from startup.vllm.fork.recorded_ends import record_spawns
from startup.vllm.fork.shared_knowledge import describe_learned, known_now
from startup.vllm.launch.crash_digest import CrashDigest
from startup.vllm.launch.hooks import find_obstacle, leave_out_unfit
from startup.vllm.launch.hub_requests import is_caused_by_offline
from startup.vllm.launch.model_files import ModelFiles
from startup.vllm.launch.plain_start import address_of, kind_of, plain_start_reason, start_plainly
from startup.vllm.launch.readiness import Learning, Readiness
from startup.vllm.launch.vllm_start import VllmStart, create_session
from startup.vllm.patches.compiler import may_defer_compiler
from startup.vllm.patches.engine_wait import EngineWait
from startup.vllm.patches.json_logs import set_log_format
from startup.vllm.patches.late_renderer import create_renderer_in
from startup.vllm.patches.placing import place_hooks
from startup.vllm.serving.engine_death import notice_engine_death
from startup.vllm.serving.server_context import ServerContext
from startup.vllm.serving.serving_events import DRAIN, ServingEvents, reuse_listener
from startup.vllm.vllm_imports import LATER_MODULES, import_api_server, import_rest
from startup.vllm.vllm_main import run_serve, without_click
from startup.vllm_arguments.installed import InstalledVllm
from startup.vllm_arguments.options import VllmOptions
from startup.vllm_arguments.preflight.all_checks import run_preflight
from startup.vllm_arguments.vllm_line import VllmLine
from startup.vllm_arguments.vllm_record import RECORDING

logger = logging.getLogger(__name__)


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
    line = options.line
    if line.is_for_help:
        if uses("lean imports"):
            import_api_server()
        gc.enable()
        return without_click(lambda: run_serve(line))
    check_task_room("vllm")
    ensure_temp_folder()
    reason = plain_start_reason(vllm, line)
    if reason is not None:
        return start_plainly(vllm, line, options, reason)
    with create_session(line, options, kind_of(vllm, line), timeline) as session:
        code = _start_preloaded(VllmStart.begin(session, vllm, options, line, environment), line)
    return end_without_finalizing(code)


def _start_preloaded(start: VllmStart, line: VllmLine) -> int:
    """Takes the steps. If one of ours fails before vLLM is ready, starts vLLM again without preloading."""
    try:
        return _take_steps(start, line)
    except (StartupError, EnvError):
        raise
    except Exception as err:
        if start.is_ready:
            raise
        start.new_start.without_preloading(f"{type(err).__name__}: {err}", is_remembered=not is_of_machine(err))


def _take_steps(start: VllmStart, line: VllmLine) -> int:
    """Takes the steps of docs/dev/architecture.md, from the second to the last. Step 1 has made `line`."""
    session, options = start.session, start.options
    # 2: listen, before this process has threads. The download lasts until step 7
    line = _listen(session, line, options)
    files = ModelFiles(session, line, options.download_timeout_s)
    _show_progress(session, options)
    # 3: which hooks fit
    leave_out_unfit(start.vllm)
    digest = start.begin_records()
    # 4: other machines may have compiled and learned. Engine and workers are imported beside the steps below
    cache = _fetch_compiled_model(start, line)
    known = known_now()
    events = ServingEvents(options.engine_watchdog_timeout_s)
    kernels = _begin_processes(start, line, events)
    # 5
    session.prefetch(line.file_plan.prefetched if line.file_plan else (), options.prefetch)
    report = _check(start, line)
    # 6
    _import_api_server(start, line, files)
    report = _check_by_parser(start, line, report)
    # 7
    model, line = line.model_folder, files.finish()
    use = kernel_use(start.vllm, line, start.kind)
    if kernels is not None and model is None:  # the processes did not know the model
        kernels.tell(use)
    # 8
    learning = Learning(start, model, use, known, report)
    readiness = Readiness(start, line, files.is_offline, cache, kernels, learning)
    _watch(events, readiness, digest)
    return _serve(readiness, digest)


def _listen(session: StartSession, line: VllmLine, options: VllmOptions) -> VllmLine:
    """Listens on the port that vLLM will bind. vLLM then gets this socket. Returns the line with its port."""
    os.environ.pop(env.NOTIFY_SOCKET.name, None)  # a vLLM that sends READY=1 would send it a second time
    if line.listens:
        has_tls, when_ready = line.has("--ssl-certfile"), options.listen_when_ready
        address = ListenAddress(line.host, line.port or 0, line.uds, is_tls=has_tls, when_ready=when_ready)
        listening = session.listen(address)
        if line.uds is None and line.port == 0:
            line = line.with_last("--port", str(session.port))
        session.stack.enter_context(reuse_listener(listening))
    else:
        session.keep_run_record(address_of(line))
    session.limit_time(None if _is_headless(line) else options.startup_timeout_s)
    return line


def _is_headless(line: VllmLine) -> bool:
    """Whether this node has no API server. The readiness of such a node is not known."""
    return line.has("--headless")


def _show_progress(session: StartSession, options: VllmOptions) -> None:
    configure_own_loggers("launcher", options.log_format, session.phase)
    session.show_progress(only_logs=True)  # vLLM's processes write to the terminal, too


def _fetch_compiled_model(start: VllmStart, line: VllmLine) -> CompileCache:
    """Begins to fetch the compiled model. Waits for what starts of other machines have learned."""
    learned = describe_learned(start.vllm, start.kind)
    cache = CompileCache(start.vllm, line, start.options.compile_cache, start.journal.folder, learned)
    add_baked_inspections(start.journal.folder)
    start.session.stack.callback(cache.close)
    cache.begin(start.session.state)
    if start_origin.warm is None:  # a warm start has its imports
        cache.wait_for_learned()
    return cache


def _begin_processes(start: VllmStart, line: VllmLine, events: ServingEvents) -> KernelProcesses | None:
    """Starts the forkserver. Returns the processes that compile kernels, if there are any."""
    use_baked_bytecode()
    logs = set_log_format(start.options.log_format, start.vllm, line, start.journal.folder)
    for notice in filter(None, (logs, keep_bytecode(start.vllm.folder))):
        logger.warning("%s", notice)
    if start.options.start_method == "forkserver":
        with start.session.timeline.span("start_forkserver"):
            return _start_forkserver(start, line, events)
    discard_dormant()
    start_resource_tracker()
    record_spawns(start.record)
    return None


def _start_forkserver(start: VllmStart, line: VllmLine, events: ServingEvents) -> KernelProcesses | None:
    folder, kernels = start.journal.folder, None
    if start.foreign_code:
        logger.info("engine and workers import vLLM after %s, as in vllm serve", list_some(start.foreign_code))
    plan = plan_preload(folder, start.vllm, line, in_order=bool(start.foreign_code))
    if not start.vllm.is_for_cpu:
        with suppress(OSError):
            kernels = KernelProcesses(folder)
            plan = replace(plan, kernels=kernel_use(start.vllm, line, start.kind))
    environment = forkserver_environment(start.vllm)
    environment[env.VCLI_LOG_FORMAT.name] = start.options.log_format
    try:
        start_forkserver(plan, environment, events.child_link)
    except OSError as err:
        logger.warning("the forkserver cannot be started (%s): vLLM spawns its processes", err)
    os.environ[env.VLLM_WORKER_MULTIPROC_METHOD.name] = "spawn"
    return kernels


def _check(start: VllmStart, line: VllmLine) -> PreflightReport | None:
    """Runs the preflight, which ends the start if it finds errors. None if it is off."""
    options = PreflightOptions(is_listening=True)
    return start.session.check(lambda: run_preflight(start.vllm, line, options), start.options.preflight)


def _check_by_parser(start: VllmStart, line: VllmLine, first: PreflightReport | None) -> PreflightReport | None:
    """In a first start, checks the arguments with the flags of vLLM's parser, which is imported by now.

    So a fault has the message and the exit code of later starts, which read the record of these flags.
    Returns what both checks have found.
    """
    if first is None or line.record.flags or not RECORDING.applies:
        return first
    if start.foreign_code:  # vLLM's parser loads plugins, before which plain vLLM has imported more
        return first
    try:
        known = start.options.line.read_again(start.record_file.gather())
    except Exception as err:  # noqa: BLE001 - another version of vLLM, which then checks its arguments alone
        logger.debug("vLLM's flags cannot be read: %s", err)
        return first
    report = run_preflight(start.vllm, known, PreflightOptions(is_listening=True))
    if report.errors:
        start.record_file.update()
    report.without(first.findings).apply(start.options.preflight)
    return report


def _import_api_server(start: VllmStart, line: VllmLine, files: ModelFiles) -> None:
    """Imports the API server on the main thread, while the forkserver imports other modules."""
    place_hooks("api")
    is_lean, in_order = may_defer_compiler(line, start.options.start_method), bool(start.foreign_code)
    with start.session.timeline.span("import_vllm"):
        failed = import_api_server(is_lean=is_lean, in_order=in_order, before_each=files.raise_refusal)
    if (obstacle := find_obstacle()) is not None:
        raise UnfitHookError(obstacle)
    if is_lean and failed:
        start.new_start.without_lean_imports(failed)
    start.journal.mark_loaded_modules()
    wait = EngineWait()

    def import_later() -> None:
        """Imports what the engine's start does not need, while the engine loads its model."""
        with start.journal.span("import_api_server"):
            import_rest(takewhile(lambda _: not wait.has_failed, LATER_MODULES), is_lean=is_lean)

    if not in_order:
        wait.add(import_later)
    wait.hook()
    create_renderer_in(wait, functools.partial(start.journal.span, "create_renderer"))


def _watch(events: ServingEvents, readiness: Readiness, digest: CrashDigest) -> None:
    """Watches for readiness and stop of vLLM's server, and for the death of its engine."""
    start, line = readiness.start, readiness.line
    folder = line.model_folder if env.VCLI_ROUTER.get() is not None else None
    context = ServerContext(
        start.record,
        start.options.engine_watchdog_timeout_s,
        start.session.stop_signals,
        start.session.responder if env.VCLI_PROBE_PROCESS.get() else None,
        kills_engine=not line.has("--shutdown-timeout"),
        note_engine_death=digest.note_engine_death,
        model_files=read_folder(folder) if folder is not None else {},
        state=start.session.state,
        has_page=start.options.web_page,
        on_accepting=readiness.end_start,
    )
    events.watch(
        on_serving=readiness.hand_over, on_ready=readiness.on_ready, on_stopping=readiness.drain, context=context
    )
    notice_engine_death(digest.note_engine_death)


def _serve(readiness: Readiness, digest: CrashDigest) -> int:
    """Runs vLLM's `main` until it returns."""
    start, line, is_offline = readiness.start, readiness.line, readiness.is_offline
    session = start.session
    gc.freeze()
    gc.enable()
    if _is_headless(line):
        session.stack.callback(readiness.learning.learn)
        session.notify_ready("node without an API server: its readiness is not known")
    session.stack.callback(readiness.note_failure)

    def run_vllm() -> int:
        try:
            with session.timeline.span("vllm"):
                named = line.with_served_name() if is_offline else line
                return run_serve(named.with_drain() if DRAIN.applies else named)
        except (OSError, ValueError) as err:
            if start.is_ready or not is_offline or not is_caused_by_offline(err):
                raise
            start.new_start.with_hub(err)

    with readiness.sharing():
        return digest.run(run_vllm, has_api_server=not _is_headless(line))
