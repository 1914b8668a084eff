"""What the launcher gives to the process that serves, which may be its child."""

from typing import Any, NamedTuple

from startup.ground.processes.stop_signals import StopSignals
from startup.port.responder import StartupResponder
from startup.reports.crash.output_record import OutputRecord


class ChildLink(NamedTuple):
    """A child's connection to the launcher: its ends of two pipes, and a setting."""

    event_fd: Any
    """The end to which the child writes its events."""
    released_fd: Any
    """The launcher closes the other end once it no longer accepts on the port."""
    watchdog_timeout_s: float
    """Not a pipe, but sent along; see `ServingParts`."""


class ServingParts(NamedTuple):
    """Given by the launcher to the server. An API server that the launcher has started has only a record."""

    record: OutputRecord | None
    """The record of the engine's processes."""
    watchdog_timeout_s: float
    """Seconds after which a silent engine is ended. 0 if engines are not watched."""
    signals: StopSignals | None = None
    """Handles the signals of this process until vLLM accepts."""
    responder: StartupResponder | None = None
    """Where possible, it also answers probes while vLLM serves. `on_serving` is then not called."""
    kills_engine: bool = False
    """Whether the engine is killed after the drain, as plain vLLM does without --shutdown-timeout."""
    can_sleep: bool = False
    """Whether vLLM has the calls that put its engines to sleep and wake them up."""
