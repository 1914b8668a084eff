"""The objects and settings that the launcher gives to the serving process, which may be a child."""

from collections.abc import Callable
from typing import Any, NamedTuple

from base.machine.file_stamps import FolderStamps
from startup.port.responder import StartupResponder
from startup.processes.stop_signals import StopSignals
from startup.reports.crash.output_record import OutputRecord
from startup.session.start_state import StartState


class ChildLink(NamedTuple):
    """A child's connection to the launcher: its ends of two pipes, and a setting."""

    event_fd: Any
    """The end to which the child writes its events."""
    released_fd: Any
    """The end at which the child waits. The launcher closes the other end once it has released the port."""
    watchdog_timeout_s: float


class ServerContext(NamedTuple):
    """The launcher's objects and settings for the server. A child process gets only the first two of them."""

    record: OutputRecord
    """The record of the engine's processes."""
    watchdog_timeout_s: float
    """Seconds after which a silent engine is ended. 0 if engines are not watched."""
    signals: StopSignals | None = None
    """Handles the signals of this process until vLLM accepts."""
    responder: StartupResponder | None = None
    """Answers probes also while vLLM serves, if this is possible. `on_serving` is then not called."""
    kills_engine: bool = False
    """Whether the engine is killed after the drain, as plain vLLM does without --shutdown-timeout."""
    model_files: FolderStamps = {}
    """The stamps of the model's files before the engine has read them. Empty if they are not known."""
    can_sleep: bool = False
    """Whether vLLM has the calls that put its engines to sleep and wake them up."""
    state: StartState | None = None
    """The start, whose report and status are answered while vLLM serves, too."""
    has_page: bool = False
    """Whether `/` is a page with chat and status."""
    on_accepting: Callable[[], None] = lambda: None
    """Called before the responder accepts for vLLM. If vLLM itself accepts, `on_serving` is called."""
    note_engine_death: Callable[[], None] | None = None
    """Called if the engine was already dead when the server was stopped."""
