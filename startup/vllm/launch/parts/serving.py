"""The parts that end a start: they watch vLLM's server, report its readiness, and show its CUDA graphs."""

import gc
import logging
from collections.abc import Mapping
from typing import Any, Final

from base.machine.file_stamps import read_folder
from envs.registry import env
from startup.processes import group_signals
from startup.session.parts import Part
from startup.vllm.launch.differences import describe_differences
from startup.vllm.launch.vllm_start import VllmStart
from startup.vllm.serving.engine_death import notice_engine_death
from startup.vllm.serving.server_context import ServerContext
from startup.vllm.serving.start_metrics import GraphFigures, export_start, stop_capturing

logger = logging.getLogger(__name__)

LATE_CAPTURES: Final = "CUDA graphs are captured after readiness [--cuda-graphs before-ready]"
"""A difference from `vllm serve`."""


class Serving(Part[VllmStart]):
    """Watches vLLM's server and the death of its engine, and reports readiness and stop."""

    needs = frozenset({"line", "files", "digest", "events"})

    def before_serving(self) -> None:
        """Must come after vLLM's imports, because it starts a thread."""
        start = self.start
        start.events.watch(
            on_serving=self._hand_over,
            on_ready=self._note_ready,
            on_stopping=start.parts.stopping,
            context=self._context(),
        )
        notice_engine_death(start.digest.note_engine_death)
        gc.freeze()
        gc.enable()
        if start.is_headless:
            start.session.notify_ready("node without an API server: its readiness is not known")

    def _context(self) -> ServerContext:
        start, session = self.start, self.start.session
        folder = start.line.model_folder if env.VCLI_ROUTER.get() is not None else None
        return ServerContext(
            start.record,
            start.options.engine_watchdog_timeout_s,
            session.stop_signals,
            session.responder if env.VCLI_PROBE_PROCESS.get() else None,
            kills_engine=not start.line.has("--shutdown-timeout"),
            note_engine_death=start.digest.note_engine_death,
            model_files=read_folder(folder) if folder is not None else {},
            state=session.state,
            has_page=start.options.web_page,
            on_accepting=start.parts.accepting,
        )

    def _hand_over(self) -> None:
        """Called before vLLM itself accepts connections, instead of the responder."""
        self.start.parts.accepting()
        self.start.session.hand_over()

    def _note_ready(self) -> None:
        self.start.is_ready = True
        self.start.record.keeps_only_errors = True
        self.start.session.notify_ready()
        self.start.parts.begin_ready()

    def accepting(self) -> None:
        session = self.start.session
        session.end()
        export_start(session.state.info(), session.state.phase_seconds())  # in vLLM's first metrics

    def ready(self) -> None:
        start = self.start
        start.end_shortening()
        start.session.finish()
        is_offline = start.files.is_offline
        logger.info("%s", describe_differences(start.line, start.options, start.differences, is_offline=is_offline))

    def stopping(self) -> None:
        self.start.session.drain()

    def ended(self) -> None:
        self.start.session.notify_stopping("vLLM has exited")


class Graphs(Part[VllmStart]):
    """Shows how many CUDA graphs the engines have captured, and ends their captures at a stop."""

    is_optional = True

    def begin(self) -> None:
        self._figures = GraphFigures(self.start.journal.folder, self._note)

    def accepting(self) -> None:
        self._figures.update()

    def ready(self) -> None:
        progress = self._figures.update()
        if progress is not None and progress.is_late:
            self.start.differences.append(LATE_CAPTURES)
        group_signals.start_thread("vllm-cuda-graphs", self._figures.follow)

    def stopping(self) -> None:
        stop_capturing(self.start.journal.folder)

    def _note(self, fields: Mapping[str, Any]) -> None:
        self.start.session.state.set_cuda_graphs(fields)
        self.start.session.note({"cuda_graphs": fields})
