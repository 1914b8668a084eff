"""The parts that show and record a start: its progress, its journal, and what its processes write."""

import logging

from startup import start_origin
from startup.hook import log_unfit, unfit
from startup.imports.learned_imports import learn_beside
from startup.logs.setup import configure_own_loggers
from startup.session.parts import Part
from startup.storage.caches import add_baked_inspections
from startup.vllm.journal import StartRecordings
from startup.vllm.launch.hooks import leave_out_unfit
from startup.vllm.launch.plain_state import forget_failure
from startup.vllm.launch.vllm_start import VllmStart
from startup.vllm.serving.serving_events import ServingEvents
from startup.vllm.start_kind import EarlierStart

logger = logging.getLogger(__name__)


class Progress(Part[VllmStart]):
    """Shows the progress of the start."""

    def begin(self) -> None:
        session = self.start.session
        configure_own_loggers("launcher", self.start.options.log_format, session.phase)
        session.show_progress(only_logs=True)  # vLLM's processes write to the terminal, too


class Records(Part[VllmStart]):
    """Leaves out hooks that do not fit, and records what vLLM's processes write."""

    gives = frozenset({"digest", "events"})

    def begin(self) -> None:
        start = self.start
        leave_out_unfit(start.vllm)
        start.digest = start.begin_records()
        start.events = ServingEvents(start.options.engine_watchdog_timeout_s)
        add_baked_inspections(start.journal.folder)

    def accepting(self) -> None:
        self.start.recordings = StartRecordings.read(self.start.journal.folder)
        self.start.session.timeline.add_spans(self.start.recordings.spans)


class Learning(Part[VllmStart]):
    """Keeps what later starts need: that this one has succeeded, and the bytecode of its imports."""

    needs = frozenset({"line"})

    def begin(self) -> None:
        self._model = self.start.line.model_folder  # None if it is not on disk yet

    def ready(self) -> None:
        start = self.start
        start.journal.record_modules()
        start.journal.is_open = False
        recordings = StartRecordings.read(start.journal.folder)
        if names := recordings.unfit.difference(unfit()):
            log_unfit(sorted(names))
        EarlierStart(start.kind, str(self._model) if self._model is not None else None).save()
        if start_origin.warm is None:  # otherwise the template has imported
            learn_beside(name for names in recordings.modules.values() for name in names)
        if start.is_ready:
            forget_failure(start.kind)

    def ended(self) -> None:
        if self.start.is_headless:  # its readiness is not known
            self.ready()
