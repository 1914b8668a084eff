"""The parts that the launcher passes on to a process that serves, or has a child serve."""

from typing import Any, NamedTuple

from startup.ground.processes.stop_signals import StopSignals
from startup.port.responder import StartupResponder
from startup.reports.crash.output_record import OutputRecord


class ChildLink(NamedTuple):
    """A child's way to reach the launcher: its ends of two pipes."""

    event_fd: Any
    """The child writes its events here."""
    released_fd: Any
    """The launcher closes the other end once it no longer accepts on the port."""
    watchdog_timeout_s: float
    """Sent along with the pipes; see `ServingParts`."""


class ServingParts(NamedTuple):
    """The launcher's parts for the server; an API server that it has started has only the record."""

    record: OutputRecord | None
    """The record of the engine's processes."""
    watchdog_timeout_s: float
    """0 for engines that are not watched."""
    signals: StopSignals | None = None
    """Handle the signals of this process until vLLM accepts."""
    responder: StartupResponder | None = None
    """Also answers probes while vLLM serves, where it can; `on_serving` is not called then."""
    kills_engine: bool = False
    """Whether the engine is killed after the drain, as plain vLLM does without --shutdown-timeout."""
    can_sleep: bool = False
    """Whether vLLM has what puts its engines to sleep and wakes them up."""
