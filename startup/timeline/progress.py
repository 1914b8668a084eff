"""How far a start is: its phase, and, where earlier starts tell, the share that is done and the time that is left."""

import mmap
import os
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final

from startup.timeline.history import EarlierStarts
from startup.timeline.live_line import draw_bar
from startup.timeline.phase_span import PhaseSpan
from startup.timeline.timeline import PhaseTimeline

_ALMOST: Final = 0.99
"""A start that goes on is never done, however long it takes."""
_BETWEEN_PHASES: Final = "starting"
READY: Final = "ready"


@dataclass(frozen=True)
class StartProgress:
    """One look at a start."""

    phase: str
    progress: float | None
    """0 to 1, never less than at an earlier look; None where nobody knows."""
    elapsed_s: float
    eta_s: float | None
    """Seconds that are left, None where nobody knows."""
    detail: str = ""
    """How far the phase itself is, where it tells."""

    def to_dict(self) -> dict[str, Any]:
        """The members of a 503 body."""
        fields = {
            "phase": self.phase,
            "progress": None if self.progress is None else round(self.progress, 3),
            "elapsed_s": round(self.elapsed_s, 3),
            "eta_s": None if self.eta_s is None else round(self.eta_s, 3),
        }
        return fields | ({"detail": self.detail} if self.detail else {})

    def __str__(self) -> str:
        """One line for a terminal."""
        parts = [f"{self.elapsed_s:5.1f} s"]
        if self.progress is not None:
            parts.append(draw_bar(self.progress))
        parts.append(self.phase.replace("_", " ") + (f": {self.detail}" if self.detail else ""))
        if self.eta_s is not None:
            parts.append(f"about {self.eta_s:.1f} s left")
        return "  ".join(parts)


class ProgressMeter:
    """Reads the timeline of a start that goes on; may be asked from any thread, and in a process forked here."""

    def __init__(self, timeline: PhaseTimeline, earlier: EarlierStarts | None = None) -> None:
        self._timeline = timeline
        self._earlier = earlier
        self.detail = ""
        """How far the phase is by its own account; whoever sets it also takes it away."""
        self._highest = _HighestShare()

    def expect(self, earlier: EarlierStarts | None) -> None:
        """From now on, these starts tell how long it takes."""
        self._earlier = earlier

    def read(self) -> StartProgress:
        """How far the start is at this moment."""
        elapsed_s = self._timeline.elapsed_s
        if self._timeline.end_ns is not None:
            return StartProgress(READY, 1.0, elapsed_s, 0.0)
        running = self._timeline.running
        phase = running.name if running else _BETWEEN_PHASES
        if self._earlier is None:
            return StartProgress(phase, None, elapsed_s, None, self.detail)
        eta_s = self._estimate(self._earlier, elapsed_s, running)
        return StartProgress(phase, self._advance(elapsed_s, eta_s), elapsed_s, eta_s, self.detail)

    def _estimate(self, earlier: EarlierStarts, elapsed_s: float, running: PhaseSpan | None) -> float:
        """What came after this phase in earlier starts, plus what is left of the phase itself."""
        usual = earlier.spans.get(running.key) if running else None
        if usual is None or running is None:
            return max(earlier.total_s - elapsed_s, 0.0)
        spent_s = elapsed_s - self._timeline.offset_s(running.begin_ns)
        left_s = max(usual.end_s - usual.begin_s - spent_s, 0.0)
        return left_s + max(earlier.total_s - usual.end_s, 0.0)

    def _advance(self, elapsed_s: float, eta_s: float) -> float:
        done = elapsed_s / (elapsed_s + eta_s) if elapsed_s + eta_s else 0.0
        return self._highest.raise_to(min(done, _ALMOST))


class _HighestShare:
    """What has been told so far, by this process or by the one that was forked from it: the responder, whose clients go
    on asking this one. Each writes its own number alone, so that none gets lost.
    """

    def __init__(self) -> None:
        self._by_process = memoryview(mmap.mmap(-1, 16)).cast("d")
        self._first_pid = os.getpid()
        self._lock = Lock()

    def raise_to(self, share: float) -> float:
        with self._lock:
            highest = max(share, *self._by_process)
            self._by_process[int(os.getpid() != self._first_pid)] = highest
            return highest
