"""What the launcher does once vLLM's server accepts connections, and when it stops."""

import functools
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from startup.compiled_models.compile_cache import CompileCache
from startup.errors import StartupError
from startup.processes import group_signals
from startup.vllm.fork.kernel_processes import KernelProcesses, summarize
from startup.vllm.fork.preload_profile import forget_failure
from startup.vllm.journal import StartRecordings
from startup.vllm.launch.differences import describe_differences
from startup.vllm.launch.learning import Learning
from startup.vllm.launch.vllm_start import VllmStart
from startup.vllm.serving.start_metrics import GraphFigures, export_start, stop_capturing
from startup.vllm_words.command_line import CommandLine

logger = logging.getLogger(__name__)


@dataclass
class Readiness:
    """Ends one start when its server is ready, reports it, and keeps what later starts need.

    `end_start`, `hand_over` and `on_ready` run on vLLM's event loop, or on a thread if children serve.
    """

    start: VllmStart
    line: CommandLine
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
            self.start.facts.record()  # so that the next start reports a misspelt flag at once
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
