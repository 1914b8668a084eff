"""Owns the listener, responder, service manager, prefetch, preflight, deadline and report of a start.

The parts of both engines' starts call the session's methods, in different orders.
"""

import faulthandler
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from multiprocessing.process import current_process
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from base.exit_codes import START_FAILED
from envs.registry import env
from server.terms.types import EngineInfo
from startup import start_origin
from startup.errors import TIMEOUT_CAUSE, StartupError, log_with_code, with_code
from startup.files.download.messages import Warn
from startup.files.download.obtain import begin_download
from startup.files.model.file_plan import Download, FilePlan
from startup.files.model.hub_settings import is_offline
from startup.files.prefetch.messages import PrefetchReport
from startup.files.prefetch.prefetch_process import PrefetchHandle, plan_libraries, start_prefetch
from startup.port import listener
from startup.port.responder import StartupResponder
from startup.port.responder_process import OpenChannel, open_plain
from startup.processes import group_signals
from startup.processes.stop_signals import StopSignals
from startup.reports.timeline.history import StartSubject
from startup.reports.timeline.progress import LiveProgress
from startup.reports.timeline.timeline import PhaseTimeline
from startup.session.preflight.report import PreflightReport
from startup.session.start_state import ProbeAnswers, StartState, save_ready_start, save_report
from startup.settings.config import PrefetchMode, PreflightMode
from startup.storage.caches import PAGES, find_baked
from startup.storage.run_record import RunRecord, run_recorded
from startup.storage.temp_folder import own_folder

if TYPE_CHECKING:
    from startup.files.download.download_process import DownloadHandle
    from startup.port.service_manager import ServiceManager

logger = logging.getLogger(__name__)

_ANSWERS_AT_ONCE = f". Meanwhile the port answers 503. Wait with `curl -f`, or set {env.VCLI_LISTEN_WHEN_READY.name}=1"


class ListenAddress(NamedTuple):
    """The address on which a server listens."""

    host: str | None
    port: int
    uds: str | None
    is_tls: bool = False
    when_ready: bool = False
    """Whether the port is bound, but does not listen until the server is ready (--listen-when-ready)."""


class StartSession:
    """One start, from its first step until the server stops. It is a context manager in the API process.

    Call its methods on the main thread, unless their docstring names other threads. A StartupError that
    leaves the `with` block is reported to probes, the service manager and the report file.
    """

    def __init__(
        self, subject: StartSubject, timeline: PhaseTimeline, *, is_private: bool = False, has_page: bool = True
    ) -> None:
        """With `is_private`, the responder answers only probes. `has_page` adds a page at `/`."""
        self.timeline = timeline
        self.state = StartState(subject, timeline)
        self.stack = ExitStack()
        """Closes its contents in reverse order when the session ends."""
        self.phase_of_others: Callable[[], str] = lambda: ""
        """Returns the phase of another process that this process awaits, or an empty text."""
        self._answers = ProbeAnswers(self.state, is_private=is_private, has_page=has_page)
        self.port: int | None = None
        """The TCP port that `listen` has bound."""
        self._address = ""
        self._log_note = ""
        """A note in the log for users whose scripts take any answer on the port as readiness."""
        self._manager: ServiceManager | None = None
        self.responder: StartupResponder | None = None
        """Answers probes during the start. None until `listen` is called."""
        self.stop_signals = StopSignals(self._report_stop)
        self._deadline: threading.Timer | None = None
        self._live: LiveProgress | None = None
        self._prefetch: PrefetchHandle | None = None
        self._download: DownloadHandle | None = None
        self._asks_later: Sequence[Download] = ()
        self._is_ready = False
        self._note_start: Callable[[Mapping[str, Any]], None] = lambda start: None
        """Adds facts about the start to the record for `vllm-cli ps`."""
        self._notes: Mapping[str, Any] = {}
        self._publishing = threading.Lock()

    def __enter__(self) -> Self:
        self.stack.enter_context(self.stop_signals)
        _log_origin()
        if self.state.subject.start_method == "spawn":
            text = "%s=spawn makes this start slower: each process of the engine imports everything again. Unset it"
            logger.info(text, env.VLLM_WORKER_MULTIPROC_METHOD.name)
        if (problem := find_baked().problem) is not None:
            logger.warning("%s", problem)
        if env.NOTIFY_SOCKET.get() is not None:
            from startup.port.service_manager import ServiceManager

            self._manager = self.stack.enter_context(closing(ServiceManager.from_environment()))
        self.timeline.on_change = self._publish
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.stack:
            if isinstance(err, StartupError):
                self._fail(err)

    def phase(self) -> str:
        """The current phase, for log lines. Any thread may call it."""
        return self.state.phase

    def listen(
        self,
        address: ListenAddress,
        prepare_channels: Callable[[], OpenChannel] = open_plain,
        *,
        accepts_activation: bool = False,
    ) -> socket.socket:
        """Binds and listens, and starts the responder. Call it before this process has a second thread.

        With `accepts_activation`, a socket that the service manager has passed is used instead of `address`.

        Raises:
            PortInUseError: another process listens on this address.
            StartupError: the address or the passed socket cannot be used.
        """
        with self.timeline.span("listen"):
            passed = None
            if accepts_activation and env.LISTEN_PID.get() is not None:
                from startup.port.service_manager import take_socket

                passed = take_socket()
            bound = passed or listener.listen(
                host=address.host, port=address.port, uds=address.uds, when_ready=address.when_ready
            )
            listening = self.stack.enter_context(bound)
        if listener.is_listening(listening):
            self.timeline.mark("listening")
        self.port = listening.getsockname()[1] if address.uds is None and passed is None else None
        self._address = listener.describe(listening, is_tls=address.is_tls)
        is_terminal = bool(sys.stdout) and sys.stdout.isatty()
        if listener.is_listening(listening) and address.uds is None and not is_terminal:
            self._log_note = _ANSWERS_AT_ONCE
        self.keep_run_record(self._address)
        self.responder = self.stack.enter_context(StartupResponder(listening, self._answers, prepare_channels))
        return listening

    def keep_run_record(self, address: str | None) -> None:
        """Makes `vllm-cli ps` list this process. Called by `listen`, or by a start that listens later."""
        subject = self.state.subject
        record = RunRecord(engine=subject.engine, model=subject.model, address=address)
        self._note_start = self.stack.enter_context(run_recorded(record))
        self.note(self.state.info()._asdict())

    def note(self, facts: Mapping[str, Any]) -> None:
        """Adds facts about the start for `vllm-cli ps`. May be called on any thread, one at a time."""
        self._notes = {**self._notes, **facts}
        self._note_start(self._notes)

    def create_folder(self) -> Path:
        """Creates a folder for all files of this start's processes. multiprocessing also uses this folder."""
        folder = self.stack.enter_context(own_folder())
        current_process()._config["tempdir"] = str(folder)  # type: ignore[attr-defined]
        return folder

    def limit_time(self, timeout_s: float | None) -> None:
        """Ends this process if the start takes longer than `timeout_s`, unless `timeout_s` is None."""
        if timeout_s is not None:
            self._deadline = start_deadline(timeout_s, self.phase)
            self.stack.callback(self._deadline.cancel)

    def show_progress(self, *, only_logs: bool = False) -> None:
        """Shows the progress on the terminal. Without a terminal, or with `only_logs`, logs long phases."""
        with group_signals.blocked():  # blocked in the new thread, too
            self._live = self.stack.enter_context(LiveProgress(self.state.meter, self._log_note, only_logs=only_logs))

    def prefetch(self, files: Sequence[Path], mode: PrefetchMode) -> None:
        """Reads torch's libraries and then the model's files into the page cache, in a helper process.

        In an image made with `vllm-cli bake`, only the parts of libraries that a start reads are prefetched.
        """
        baked = find_baked().folder
        pages = baked / PAGES if baked is not None and (baked / PAGES).exists() else None
        paths = (*(() if pages else plan_libraries()), *files)
        self._prefetch = self.stack.enter_context(start_prefetch(paths, mode, pages))

    def download(self, plan: FilePlan, timeout_s: float | None, warn: Warn = lambda _: None) -> "DownloadHandle | None":
        """Downloads missing or changed files in a helper process. Returns None if nothing is downloaded now.

        The running phase shows the download's progress. `warn` is called with a failure, on another thread. A
        warm start with all files on disk does not wait for the hub. In this case, `finish` downloads changed
        files for the next start.
        """
        if start_origin.warm is not None and plan.is_on_disk:
            self._asks_later = [] if is_offline() else plan.downloads
            return None
        self._download = begin_download(plan, self.state.set_detail, warn, timeout_s=timeout_s)
        return self.stack.enter_context(self._download) if self._download is not None else None

    def check(self, run_preflight: Callable[[], PreflightReport], mode: PreflightMode) -> PreflightReport | None:
        """Reads the history, runs the preflight and logs its warnings. Returns None if the preflight is off.

        Args:
            run_preflight: called within the phase `preflight`, so that its imports are part of the phase.
            mode: `auto` ends the start if there are errors, `warn` logs them, `off` does not check.

        Raises:
            StartupError: the preflight has found errors. The exception has all of them.
        """
        with self.timeline.span("preflight"):
            self.state.load_history()
            report = run_preflight() if mode != "off" else None
        if report is not None:
            report.apply(mode)
        return report

    def hand_over(self) -> None:
        """Stops the responder, before the HTTP server accepts. May be called on any thread."""
        if self.responder is not None:
            self.responder.hand_over()

    def end(self) -> None:
        """Ends the start right before the server is ready. Report, record and metrics have its times."""
        if self.timeline.end_ns is not None:
            return
        if self._download is not None and self._download.report is not None:
            self.timeline.add("download", self._download.report.spans)
        self.state.finish(self._prefetch_report)
        ready = {"ready_s": self.state.elapsed_s(), "phases": self.state.phase_seconds()}
        self.note(self.state.info()._asdict() | ready)

    def finish(self, info: EngineInfo | None = None) -> None:
        """Ends deadline and progress, and saves the start. Call it on any thread once the server is ready."""
        self._end_waiting()
        self.end()
        self._publish()
        save_ready_start(self.state, self._address, info=info, prefetch=self._prefetch_report)
        if self._asks_later:
            group_signals.start_thread("update", self._download_later)

    @property
    def _prefetch_report(self) -> PrefetchReport | None:
        return self._prefetch.result() if self._prefetch is not None else None

    def _download_later(self) -> None:
        """Downloads changed files in a helper process. Runs on a thread. The helper ends with this thread."""
        from startup.files.download.download_process import start_download

        with start_download(self._asks_later) as handle:
            if handle.result() != tuple(download.cached for download in self._asks_later):
                logger.info("the next start serves the changed files: a warm start does not wait for the hub")

    def notify_ready(self, status: str | None = None) -> None:
        """Ends the deadline and notifies the service manager of readiness. May be called on any thread.

        From now on, the server handles signals itself.
        """
        self._is_ready = True
        self.stop_signals.release()
        self._end_waiting()
        if self._manager is not None:
            self._manager.notify_ready(status or f"ready: {self._address}")

    def drain(self) -> None:
        """Ends the deadline and reports the drain. Call it on any thread when the server begins to drain."""
        self._end_waiting()
        self.state.drain()
        self.notify_stopping("finishing running requests")

    def notify_stopping(self, status: str) -> None:
        if self._manager is not None:
            self._manager.notify_stopping(status)

    def _end_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self._live is not None:
            self._live.close()

    def _publish(self) -> None:
        """Sends each change of the timeline to the responder, and the phase to the service manager.

        Called on the main thread, and on the thread that reports a download's progress. A lock keeps the
        messages in order.
        """
        with self._publishing:
            if self.responder is not None:
                self.responder.update(self.state.to_message())
            if self._manager is not None and not self._is_ready and self.timeline.running is not None:
                self._manager.notify_status(self.state.meter.read().activity)

    def _report_stop(self, signal_name: str) -> None:
        if self._live is not None:
            self._live.erase()
        phase = self.phase_of_others() or self.phase()
        logger.info("stopped by %s during the start, in phase %s", signal_name, phase.replace("_", " "))
        logging.disable()  # other threads would log that processes end
        self.notify_stopping(f"stopped by {signal_name} during the start")

    def _fail(self, err: StartupError) -> None:
        reason = str(err)
        if not self._is_ready:
            self.state.fail(reason)
            save_report(self.state.build_report(), self.state.subject)
        from startup.reports.crash.crash_report import write_termination_message  # noqa: PLC0415 - only after a failure

        write_termination_message(with_code(reason, err.cause))
        if self._manager is not None:
            self._manager.notify_failure(reason)


def _log_origin() -> None:
    """Logs a line about a warm start. At debug level, logs why a start is cold."""
    if (warm := start_origin.warm) is not None:
        text = "warm start: forked from the standby's process %d, which saves %.1f s of imports"
        logger.info(text, warm.template_pid, warm.saved_s)
    elif start_origin.cold_reason:
        logger.debug("cold start: %s", start_origin.cold_reason)


def start_deadline(limit_s: float, describe: Callable[[], str]) -> threading.Timer:
    """Starts the timer of the limit. Call the timer's `cancel` once the start has finished.

    The main thread may be in an import or a system call, where no exception reaches it. So the timer's thread
    itself kills the engine process and then ends this process.
    """
    timer = threading.Timer(limit_s, _expire, (limit_s, describe))
    timer.name, timer.daemon = "start-deadline", True
    with group_signals.blocked():
        timer.start()
    return timer


def _expire(limit_s: float, describe: Callable[[], str]) -> None:
    logger.error("stacks of all threads:\n%s", _stacks())
    message = f"the start took longer than --startup-timeout {limit_s:g} s, in phase {describe()}"
    log_with_code(logger.error, message, TIMEOUT_CAUSE)
    for child in multiprocessing.active_children():
        if child.pid is not None:
            os.kill(child.pid, signal.SIGKILL)
    sys.stderr.flush()
    os._exit(START_FAILED)


def _stacks() -> str:
    """The stacks of all threads. C code writes them, because it needs no lock that a thread may hold."""
    # faulthandler writes only to a file with a descriptor.
    with os.fdopen(os.memfd_create("stacks"), "w+", encoding="utf-8", errors="replace") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
