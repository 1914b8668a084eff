"""The progress of a start: its phase, the completed share and the remaining time.

Share and time are estimated from earlier starts, and shown on one line of a terminal or else in the log.
"""

import logging
import mmap
import os
import sys
import threading
from dataclasses import dataclass
from typing import Any, Final, Self

from startup.reports.timeline.history import EarlierStarts
from startup.reports.timeline.live_line import LiveLine, draw_bar
from startup.reports.timeline.timeline import PhaseSpan, PhaseTimeline

logger = logging.getLogger(__name__)

_MAX_WHILE_RUNNING: Final = 0.99
"""The largest share that is shown during the start, even if the start takes longer than earlier starts."""
_BETWEEN_PHASES: Final = "starting"
READY: Final = "ready"
LONG_PHASE_S: Final = 2.0
"""Seconds after which a phase that still runs is logged."""


@dataclass(frozen=True)
class StartProgress:
    """The progress of a start at one moment."""

    phase: str
    progress: float | None
    """The completed share, 0 to 1. It never decreases. None if there are no earlier starts."""
    elapsed_s: float
    eta_s: float | None
    """The remaining seconds. None if there are no earlier starts."""
    detail: str = ""
    """The progress within the phase. Empty if the phase reports no progress."""

    def to_dict(self) -> dict[str, Any]:
        """The progress as members of the JSON body of a 503 response."""
        fields = {
            "phase": self.phase,
            "progress": None if self.progress is None else round(self.progress, 3),
            "elapsed_s": round(self.elapsed_s, 3),
            "eta_s": None if self.eta_s is None else round(self.eta_s, 3),
        }
        return fields | ({"detail": self.detail} if self.detail else {})

    @property
    def activity(self) -> str:
        """The phase in words, with the progress within the phase."""
        return self.phase.replace("_", " ") + (f": {self.detail}" if self.detail else "")

    def __str__(self) -> str:
        parts = [f"{self.elapsed_s:5.1f} s"]
        if self.progress is not None:
            parts.append(draw_bar(self.progress))
        parts.append(self.activity)
        if self.eta_s is not None:
            parts.append(f"about {self.eta_s:.1f} s left")
        return "  ".join(parts)


class ProgressMeter:
    """Computes the progress from the timeline. Any thread and any forked process may read it."""

    def __init__(self, timeline: PhaseTimeline) -> None:
        self._timeline = timeline
        self.earlier: EarlierStarts | None = None
        """The earlier starts from which the remaining time is estimated."""
        self.detail = ""
        """The progress within the current phase as text. The code that sets it also removes it."""
        self._highest = memoryview(mmap.mmap(-1, 16)).cast("d")
        """The highest shares that this process, and the responder, a fork of it, have reported so far.

        Clients of the responder later become clients of this process, so they must not see a smaller share
        then. Each process writes only its own number to this shared memory, so that no update is lost.
        """
        self._first_pid = os.getpid()
        self._lock = threading.Lock()

    def read(self) -> StartProgress:
        elapsed_s = self._timeline.elapsed_s
        if self._timeline.end_ns is not None:
            return StartProgress(READY, 1.0, elapsed_s, 0.0)
        running = self._timeline.running
        phase = running.name if running else _BETWEEN_PHASES
        if self.earlier is None:
            return StartProgress(phase, None, elapsed_s, None, self.detail)
        eta_s = self._estimate(self.earlier, elapsed_s, running)
        done = elapsed_s / (elapsed_s + eta_s) if elapsed_s + eta_s else 0.0
        with self._lock:
            share = max(min(done, _MAX_WHILE_RUNNING), *self._highest)
            self._highest[int(os.getpid() != self._first_pid)] = share
        return StartProgress(phase, share, elapsed_s, eta_s, self.detail)

    def _estimate(self, earlier: EarlierStarts, elapsed_s: float, running: PhaseSpan | None) -> float:
        """Estimates the remaining seconds of this and later phases, from medians of earlier starts."""
        usual = earlier.spans.get(running.key) if running else None
        if usual is None or running is None:
            return max(earlier.total_s - elapsed_s, 0.0)
        spent_s = elapsed_s - self._timeline.offset_s(running.begin_ns)
        left_s = max(usual.end_s - usual.begin_s - spent_s, 0.0)
        return left_s + max(earlier.total_s - usual.end_s, 0.0)


class LiveProgress:
    """A thread that shows the progress: on a terminal 10 times a second, or in the log 4 times a second."""

    def __init__(
        self, meter: ProgressMeter, log_note: str = "", *, only_logs: bool = False, long_phase_s: float = LONG_PHASE_S
    ) -> None:
        """`log_note` is appended to the first line in the log. `only_logs`: whether a terminal is ignored."""
        self._meter = meter
        self._line = LiveLine(sys.stderr)
        self._is_live = self._line.is_on and not only_logs
        self._long_phase_s = long_phase_s
        self._log_note = log_note
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-progress", daemon=True)

    def __enter__(self) -> Self:
        if self._is_live:
            for handler in logging.getLogger().handlers:
                self._line.erase_for(handler)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Erases the line and stops the thread."""
        self._stop.set()
        self._thread.join()
        self._line.close()

    def erase(self) -> None:
        """Erases the line and stops the thread, but does not wait for the thread. Used in signal handlers."""
        self._stop.set()
        self._line.close()

    def _run(self) -> None:
        if self._is_live:
            while not self._stop.wait(0.1):
                self._line.show(str(self._meter.read()))
        else:
            self._log_long_phases()

    def _log_long_phases(self) -> None:
        phase, begin_s, logged = "", 0.0, set[str]()
        while not self._stop.wait(min(self._long_phase_s, 0.25)):
            progress = self._meter.read()
            if progress.phase != phase:
                phase, begin_s = progress.phase, progress.elapsed_s
            elif progress.elapsed_s - begin_s >= self._long_phase_s and phase not in logged:
                _log(progress, "" if logged else self._log_note)
                logged.add(phase)


def _log(progress: StartProgress, note: str) -> None:
    left = f", about {progress.eta_s:.0f} s left" if progress.eta_s else ""
    logger.info("starting for %.1f s: %s%s%s", progress.elapsed_s, progress.activity, left, note)
