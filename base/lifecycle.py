"""The lifecycle of a server, with its states, transitions and subscribers. Standard library only."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple, Protocol, Self

State = Literal["starting", "ready", "draining", "dead"]

TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    "starting": frozenset({"ready", "draining", "dead"}),
    "ready": frozenset({"draining", "dead"}),
    "draining": frozenset({"dead"}),
    "dead": frozenset(),
}
"""State -> the states that may follow it."""


START_INFO: Final = ("vllm_cli:start_info", "How the server was started: cold, warm or plain, and why.")
START_PHASES: Final = ("vllm_cli:start_phase_seconds", "How long each phase of the start took; `total` is the start.")
GRAPHS_CAPTURED: Final = ("vllm_cli:cuda_graphs_captured", "CUDA graphs that the engines have captured.")
GRAPHS_TOTAL: Final = ("vllm_cli:cuda_graphs_total", "CUDA graphs of the engines, captured or not.")
GRAPHS_GIVEN_UP: Final = ("vllm_cli:cuda_graphs_given_up", "CUDA graphs that are not captured, since a capture failed.")


class StartInfo(NamedTuple):
    """How a server was started. The fields are labels of `vllm_cli:start_info`, empty if unknown."""

    start_mode: str
    """`cold`, `warm` or `plain`. A plain start is a start of vLLM without preloading."""
    reason: str = ""
    """Why the start is plain, or not warm."""
    compile: str = ""
    """During the start `loads` or `compiles`, then `loaded` or `compiled`. Empty if vLLM compiles nothing."""
    compile_reason: str = ""
    """Why the model is compiled: kinds and names of the settings that differ, without their values."""

    @classmethod
    def from_notes(cls, notes: Mapping[str, Any]) -> Self:
        """Creates the object from a process's notes about its start. Ignores unknown notes."""
        return cls(*(str(notes.get(name, "")) for name in cls._fields))

    def __str__(self) -> str:
        mode = f"{self.start_mode}: {self.reason}" if self.reason else self.start_mode
        if not self.compile:
            return mode
        return f"{mode}; model {self.compile}" + (f": {self.compile_reason}" if self.compile_reason else "")


class StartView(Protocol):
    """The progress and the timeline of a start. Each method is fast and may be called at any time."""

    def progress(self) -> dict[str, Any]:
        """Members of a 503 body: `phase`, `progress` (0 to 1), `elapsed_s`, `eta_s` (None if unknown).

        `detail` is missing, because only downloads have it, and they end before this server starts.
        """

    def report(self) -> bytes:
        """The timeline up to now as JSON, for the body of /startupz."""

    def elapsed_s(self) -> float:
        """Seconds from the start of the process to readiness, or until now if the server is not ready."""

    def uptime_s(self) -> float:
        """Seconds since the kernel has started the process."""

    def info(self) -> StartInfo:
        """How the server was started. Fields that are not known yet are empty."""

    def phase_seconds(self) -> Mapping[str, float]:
        """`process:phase` -> the seconds that the start has waited for this phase so far."""


class IllegalTransitionError(RuntimeError):
    """The current state does not allow the event. The caller has a bug."""


class Lifecycle:
    """The state of one server. Changed only on the event loop. Any thread may read the attributes."""

    def __init__(self) -> None:
        self.state: State = "starting"
        self.reason: str | None = None
        """Why the engine has ended. None while it runs."""
        self.is_hung = False
        """Whether the engine was ended because it hung."""
        self.has_engine = False
        """Whether the engine has been ready and has not ended. Stays True while the server drains."""
        self._subscribers: list[Callable[[State], None]] = []

    def subscribe(self, callback: Callable[[State], None]) -> None:
        """Calls `callback` with the new state after each transition, in order, on the event loop."""
        self._subscribers.append(callback)

    def engine_ready(self) -> None:
        """Called when the engine has generated its first token. A draining server keeps draining."""
        self.has_engine = self.state != "dead"
        if self.state != "draining":
            self._enter("ready")

    def engine_ended(self, reason: str) -> None:
        """Called when the engine has ended, hangs or did not start. A later call may give a better reason."""
        self.has_engine = False
        self.reason = reason
        if self.state != "dead":
            self._enter("dead")

    def engine_hangs(self, reason: str) -> None:
        """Called when the watchdog ends an engine that hangs."""
        self.is_hung = True
        self.engine_ended(reason)

    def drain(self) -> None:
        """Called when the server stops accepting requests."""
        self._enter("draining")

    def _enter(self, state: State) -> None:
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransitionError(f"a {self.state} server cannot become {state}")
        self.state = state
        for callback in self._subscribers:
            callback(state)
