"""Reports a start once vLLM's server is ready. Keeps and shares what later starts need, also at a stop."""

import functools
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from startup import start_origin
from startup.compiled_models.compile_cache import CompileCache
from startup.errors import StartupError
from startup.hook import log_unfit, unfit
from startup.imports.learned_imports import learn_beside
from startup.kernels.kernel_lists import KernelUse
from startup.processes import group_signals
from startup.session.preflight.report import PreflightReport
from startup.vllm.fork.kernel_processes import KernelProcesses, learn_kernels, summarize
from startup.vllm.fork.shared_knowledge import known_now
from startup.vllm.journal import StartRecordings
from startup.vllm.launch.differences import describe_differences
from startup.vllm.launch.plain_state import forget_failure
from startup.vllm.launch.vllm_start import VllmStart
from startup.vllm.serving.start_metrics import GraphFigures, export_start, stop_capturing
from startup.vllm.start_kind import EarlierStart
from startup.vllm_arguments.vllm_line import VllmLine

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learning:
    """The knowledge of one start: from earlier starts, and for later ones."""

    start: VllmStart
    model: Path | None
    """The folder of the model before the start. None if it was not on disk."""
    kernels: KernelUse
    known: object
    """What the start knew at its begin (`known_now`)."""
    report: PreflightReport | None
    """The findings of the preflight. None if it did not run."""

    @property
    def has_news(self) -> bool:
        """Whether this start has learned what it did not know."""
        return known_now() != self.known

    def learn(self) -> None:
        """Keeps what later starts need: that this one has succeeded, bytecode, and the record of flags."""
        self.start.journal.record_modules()
        self.start.journal.is_open = False
        recordings = StartRecordings.read(self.start.journal.folder)
        if names := recordings.unfit.difference(unfit()):
            log_unfit(sorted(names))
        learn_kernels(self.kernels, recordings)
        EarlierStart(self.start.kind, str(self.model) if self.model is not None else None).save()
        if start_origin.warm is None:  # otherwise the template has imported
            learn_beside(name for names in recordings.modules.values() for name in names)
        is_doubted = self.report is None or bool(self.report.errors or self.report.warnings)
        self.start.record_file.update(is_doubted=self.start.is_ready and is_doubted)

    def learn_kernels(self) -> None:
        """Keeps the kernels that were used so far."""
        learn_kernels(self.kernels, StartRecordings.read(self.start.journal.folder))


@dataclass
class Readiness:
    """Ends one start when its server is ready, reports it, and keeps what later starts need.

    `end_start`, `hand_over` and `on_ready` run on vLLM's event loop, or on a thread if children serve.
    """

    start: VllmStart
    line: VllmLine
    is_offline: bool
    """Whether vLLM sends no requests to the hub, because the launcher has forbidden them."""
    cache: CompileCache
    kernels: KernelProcesses | None
    """Compile kernels beside the engine, until the server is ready."""
    learning: Learning
    stop_began_s: float = 0.0
    """When this process's server began to stop, in monotonic seconds. 0 before that."""

    @cached_property
    def _graphs(self) -> GraphFigures:
        return GraphFigures(self.start.journal.folder, self._note_graphs)

    def end_start(self) -> None:
        """Called before vLLM accepts connections. Then vLLM's first metrics show the start.

        Takes milliseconds. What takes longer, or is needed only by later starts, follows in `_finish`.
        """
        session = self.start.session
        if session.timeline.end_ns is not None:
            return
        if self.kernels is not None:
            self.kernels.end()
        try:
            recordings = StartRecordings.read(self.start.journal.folder)
            session.timeline.add_spans(recordings.spans)
            if (kernels := summarize(recordings)) is not None:
                session.state.set_kernels(kernels)
            self.cache.describe(session.state)
            session.end()
            export_start(session.state.info(), session.state.phase_seconds())
            self._graphs.update()
        except Exception:  # vLLM serves all the same
            logger.exception("the start's figures are incomplete")

    def hand_over(self) -> None:
        """Called before vLLM itself accepts connections, instead of the responder."""
        self.end_start()
        self.start.session.hand_over()

    def on_ready(self) -> None:
        """Called when vLLM accepts connections."""
        self.start.is_ready = True
        self.start.record.keeps_only_errors = True
        self.start.session.notify_ready()
        group_signals.start_thread("vllm-start-report", self._finish)

    def drain(self) -> None:
        """Called on the event loop before the server stops."""
        self.stop_began_s = time.monotonic()
        stop_capturing(self.start.journal.folder)
        self.start.session.drain()

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Runs vLLM in this block. Afterwards, waits until what this start has compiled is shared."""
        self.start.session.stop_signals.before_end = functools.partial(
            self.cache.give_up_sharing, "a second signal has ended the server"
        )
        try:
            yield
        except StartupError:
            self.cache.give_up_sharing("vLLM has failed")
            raise
        finally:
            self.start.session.notify_stopping("vLLM has exited")
            if self.start.is_ready:  # first requests need kernels, too
                self.learning.learn_kernels()
        self.cache.finish_sharing(self._wait_in_stop)

    def _wait_in_stop(self, event: threading.Event) -> str:
        """Waits for the event no longer than requests may run after a signal. See `StopSignals.wait_for`."""
        signals = self.start.session.stop_signals
        begin_s = self.stop_began_s or signals.first_s or time.monotonic()
        return signals.wait_for(event, begin_s=begin_s, limit_s=self.line.shutdown_timeout_s)

    def note_failure(self) -> None:
        """Called at the end of the start. Does nothing if the server was ready."""
        if not self.start.is_ready:
            self.start.record_file.update()  # so that the next start reports a misspelt flag at once
            if sys.exception() is not None:
                self.cache.note_failure()

    def _finish(self) -> None:
        """Reports the start, and learns and shares what later starts need, which may take seconds."""
        try:
            self._report_and_learn()
        finally:
            keys = StartRecordings.read(self.start.journal.folder).kernel_keys.values()
            self.cache.share(self.start.session.state, has_news=self.learning.has_news, kernel_keys=keys)

    def _report_and_learn(self) -> None:
        self.start.end_shortening()
        self.start.session.finish()
        graphs = self._graphs.update()
        group_signals.start_thread("vllm-cuda-graphs", self._graphs.follow)
        is_late = graphs is not None and graphs.is_late
        text = describe_differences(self.line, self.start.options, is_offline=self.is_offline, has_late_graphs=is_late)
        logger.info("%s", text)
        self.learning.learn()
        forget_failure(self.start.kind)

    def _note_graphs(self, fields: Mapping[str, Any]) -> None:
        self.start.session.state.set_cuda_graphs(fields)
        self.start.session.note({"cuda_graphs": fields})
