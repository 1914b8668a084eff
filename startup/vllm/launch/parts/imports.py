"""The parts that import vLLM: engine and workers in the forkserver, the API server in this process."""

import functools
import logging
import os
from itertools import takewhile

from base.wording import list_some
from envs.registry import env
from startup.hook import UnfitHookError
from startup.processes.new_program import discard_dormant, start_resource_tracker
from startup.session.parts import Part
from startup.storage.bytecode import keep_bytecode
from startup.storage.caches import use_baked_bytecode
from startup.vllm.fork.forkserver import forkserver_environment, start_forkserver
from startup.vllm.fork.preload_plan import plan_preload
from startup.vllm.fork.recorded_ends import record_spawns
from startup.vllm.launch.hooks import find_obstacle
from startup.vllm.launch.vllm_start import VllmStart
from startup.vllm.patches.compiler import may_defer_compiler
from startup.vllm.patches.engine_wait import EngineWait
from startup.vllm.patches.json_logs import set_log_format
from startup.vllm.patches.late_renderer import create_renderer_in
from startup.vllm.patches.placing import place_hooks
from startup.vllm.vllm_imports import LATER_MODULES, import_api_server, import_rest

logger = logging.getLogger(__name__)


class Plan(Part[VllmStart]):
    """Plans what the forkserver imports, and where bytecode is read."""

    needs = frozenset({"line"})
    gives = frozenset({"plan"})

    def begin(self) -> None:
        start, folder = self.start, self.start.journal.folder
        use_baked_bytecode()
        logs = set_log_format(start.options.log_format, start.vllm, start.line, folder)
        for notice in filter(None, (logs, keep_bytecode(start.vllm.folder))):
            logger.warning("%s", notice)
        start.plan = plan_preload(folder, start.vllm, start.line, in_order=bool(start.foreign_code))


class Forkserver(Part[VllmStart]):
    """Starts the forkserver, which imports engine and workers on another core, and forks them later."""

    needs = frozenset({"plan", "events"})

    def begin(self) -> None:
        start = self.start
        if start.options.start_method == "forkserver":
            with start.session.timeline.span("start_forkserver"):
                self._start()
        else:
            discard_dormant()
            start_resource_tracker()
            record_spawns(start.record)

    def _start(self) -> None:
        start = self.start
        if start.foreign_code:
            logger.info("engine and workers import vLLM after %s, as in vllm serve", list_some(start.foreign_code))
        environment = forkserver_environment(start.vllm)
        environment[env.VCLI_LOG_FORMAT.name] = start.options.log_format
        try:
            start_forkserver(start.plan, environment, start.events.child_link)
        except OSError as err:
            logger.warning("the forkserver cannot be started (%s): vLLM spawns its processes", err)
        os.environ[env.VLLM_WORKER_MULTIPROC_METHOD.name] = "spawn"


class ApiServer(Part[VllmStart]):
    """Imports the API server's modules on the main thread, but not torch's compiler."""

    needs = frozenset({"line", "files"})

    def begin(self) -> None:
        start = self.start
        place_hooks("api")
        is_lean, in_order = may_defer_compiler(start.line, start.options.start_method), bool(start.foreign_code)
        with start.session.timeline.span("import_vllm"):
            failed = import_api_server(is_lean=is_lean, in_order=in_order, before_each=start.files.raise_refusal)
        if (obstacle := find_obstacle()) is not None:
            raise UnfitHookError(obstacle)
        if is_lean and failed:
            start.new_start.without_lean_imports(failed)
        start.journal.mark_loaded_modules()
        wait = EngineWait()
        if not in_order:
            wait.add(functools.partial(self._import_later, wait, is_lean=is_lean))
        wait.hook()
        create_renderer_in(wait, functools.partial(start.journal.span, "create_renderer"))

    def _import_later(self, wait: EngineWait, *, is_lean: bool) -> None:
        """Imports what the engine's start does not need, while the engine loads its model."""
        with self.start.journal.span("import_api_server"):
            import_rest(takewhile(lambda _: not wait.has_failed, LATER_MODULES), is_lean=is_lean)
