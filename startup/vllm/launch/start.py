"""Starts an installed vLLM as a tuple of parts. The installed files stay unchanged.

This process becomes vLLM's API server. Before that, it listens on the port and starts a forkserver. The
forkserver imports (preloads) the modules of engine and workers on another core, while this process imports
the modules of the API server. So two processes import torch, and engine and workers inherit it. If
preloading is impossible, vLLM starts without it.
"""

import gc
from typing import Final

from envs.environment import snapshot
from envs.variable import EnvError
from startup.errors import StartupError, is_of_machine
from startup.files.model.hub_settings import use_first_endpoint
from startup.hook import uses
from startup.logs.setup import configure_own_loggers
from startup.processes.quick_end import end_without_finalizing
from startup.reports.timeline.timeline import PhaseTimeline
from startup.session.parts import Part, Parts
from startup.session.task_room import check_task_room
from startup.storage.temp_folder import ensure_temp_folder
from startup.vllm.launch.hub_requests import is_caused_by_offline
from startup.vllm.launch.parts.checks import ParserCheck, Preflight
from startup.vllm.launch.parts.compiled_model import CompiledModel
from startup.vllm.launch.parts.files import Files
from startup.vllm.launch.parts.imports import ApiServer, Forkserver, Plan
from startup.vllm.launch.parts.kernels import Kernels
from startup.vllm.launch.parts.listening import Listening
from startup.vllm.launch.parts.records import Learning, Progress, Records
from startup.vllm.launch.parts.serving import Graphs, Serving
from startup.vllm.launch.plain_start import kind_of, plain_start_reason, start_plainly
from startup.vllm.launch.vllm_start import VllmStart, create_session
from startup.vllm.serving.serving_events import DRAIN
from startup.vllm.vllm_imports import import_api_server
from startup.vllm.vllm_main import run_serve, without_click
from startup.vllm_arguments.installed import InstalledVllm
from startup.vllm_arguments.options import VllmOptions

PARTS: Final[tuple[type[Part[VllmStart]], ...]] = (
    Listening,  # before this process has threads; its child, the responder, must not inherit the pipes of Records
    Files,  # downloads beside all parts below
    Progress,  # has a thread, so it comes after the processes that the two parts above fork
    Records,  # before all parts that write to the journal, or place hooks
    CompiledModel,  # other machines may have compiled and learned what the parts below read
    Plan,
    Kernels,  # adds itself to the plan
    Forkserver,  # imports engine and workers beside the parts below
    Preflight,  # takes a second, which the forkserver uses
    ApiServer,
    ParserCheck,  # needs vLLM's parser, which is imported by now. The download goes on meanwhile
    Learning,  # closes the journal before ParserCheck keeps flags, which may import, and before models are shared
    Serving,  # has a thread, so it comes after vLLM's imports
    Graphs,  # shows its metrics beside those of Serving
)
"""The parts in the order of `begin`. docs/dev/architecture.md has them as a table."""


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
        code = _start_preloaded(VllmStart.begin(session, vllm, options, line, environment))
    return end_without_finalizing(code)


def _start_preloaded(start: VllmStart) -> int:
    """Runs the start. If a part of ours fails before vLLM is ready, starts vLLM again without preloading."""
    try:
        start.parts = Parts(start, PARTS, start.session.stack)
        start.parts.prepare()
        return start.digest.run(lambda: _run_vllm(start), has_api_server=not start.is_headless)
    except (StartupError, EnvError):
        raise
    except Exception as err:
        if start.is_ready:
            raise
        start.new_start.without_preloading(f"{type(err).__name__}: {err}", is_remembered=not is_of_machine(err))


def _run_vllm(start: VllmStart) -> int:
    """Runs vLLM's `main` until it returns."""
    line, is_offline = start.line, start.files.is_offline
    try:
        with start.session.timeline.span("vllm"):
            named = line.with_served_name() if is_offline else line
            return run_serve(named.with_drain() if DRAIN.applies else named)
    except (OSError, ValueError) as err:
        if start.is_ready or not is_offline or not is_caused_by_offline(err):
            raise
        start.new_start.with_hub(err)
