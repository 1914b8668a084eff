"""What one start of vLLM has written to a log: phases, exceptions, and other lines that tell a cause."""

from dataclasses import dataclass, field
from typing import Final

from startup.causes.failures import FailureReader, is_place_of_requests
from startup.causes.known.table import KNOWN
from startup.causes.known_cause import KnownCause
from startup.causes.log_line import LogLine
from startup.causes.phase import SERVING, phase_of_message

_MOST_PHASES: Final = 1_000
_ENGINE_DEAD: Final = ("EngineDeadError", "EngineCore encountered an issue", "Engine loop is not running")
_OWN_ERROR: Final = "Error: "
"""Begins the last line of `vllm-cli` when a start fails."""

_HINTS: Final = tuple(known for known in KNOWN if known.where == "hint")
_ENDS: Final = tuple(known for known in KNOWN if known.where == "end")


@dataclass(frozen=True)
class Sign:
    """A line outside of exceptions that tells something of the cause."""

    line: LogLine
    number: int
    phase: str
    known: KnownCause | None


@dataclass
class Run:
    """What one start of the server has written; of each kind of line the first that says something."""

    exceptions: FailureReader = field(default_factory=FailureReader)
    end: Sign | None = None
    """A line that tells the end of a process without an exception."""
    hint: Sign | None = None
    """A line that explains an exception."""
    error: Sign | None = None
    """The message of an error whose cause is known; it need not have ended anything."""
    own_error: Sign | None = None
    """The last message of `vllm-cli` itself."""
    was_ready: bool = False
    """Whether the server accepted requests."""
    is_engine_dead: bool = False
    """Whether the API server has noticed that its engine is gone."""
    _phases: dict[str, str] = field(default_factory=dict)
    """Label of a process -> its latest phase; the empty label stands for the latest of all."""

    def read(self, line: LogLine, number: int) -> None:
        """Takes the next line, which has this number."""
        phase = self._follow_phase(line)
        self.is_engine_dead |= any(part in line.text for part in _ENGINE_DEAD)
        self.exceptions.read(line, number, phase)
        if line.text[:1] not in (" ", "\t"):
            self._look_for_signs(line, number, phase)

    def _follow_phase(self, line: LogLine) -> str:
        if begun := phase_of_message(line.text):
            if len(self._phases) < _MOST_PHASES:
                self._phases[line.process] = begun
            self._phases[""] = begun
            self.was_ready |= begun == SERVING
        return SERVING if self.was_ready else self._phases.get(line.process) or self._phases.get("", "")

    def _look_for_signs(self, line: LogLine, number: int, phase: str) -> None:
        if self.hint is None and (known := _match(line, _HINTS)):
            self.hint = Sign(line, number, phase, known)
        if self._may_end_better() and (known := _match(line, _ENDS)):
            if self.end is None or not known.is_general:
                self.end = Sign(line, number, phase, known)
        elif self.error is None and line.level in ("ERROR", "CRITICAL") and not is_place_of_requests(line.place):
            known = _match(line, KNOWN)
            self.error = Sign(line, number, phase, known) if known else None
        if not line.level and line.text.startswith(_OWN_ERROR):
            self.own_error = Sign(line, number, phase, _match(line, KNOWN))

    def _may_end_better(self) -> bool:
        """Whether a later line can tell more of the end: none was found, or one that fits to many causes."""
        return self.end is None or self.end.known is None or self.end.known.is_general


def _match(line: LogLine, causes: tuple[KnownCause, ...]) -> KnownCause | None:
    return next((known for known in causes if known.matches(line.text)), None)
