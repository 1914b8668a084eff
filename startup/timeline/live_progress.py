"""Shows the progress of a start: on one line of the terminal or, without one, in the log."""

import logging
import sys
import threading
from types import TracebackType
from typing import Final, Self

from startup.timeline.live_line import LiveLine
from startup.timeline.progress import ProgressMeter, StartProgress

logger = logging.getLogger(__name__)

LONG_PHASE_S: Final = 2.0
"""The log has one line for each phase that takes longer, written while it runs."""


class LiveProgress:
    """A thread that reads the meter: ten times a second for a terminal, four times for the log."""

    def __init__(self, meter: ProgressMeter, *, only_logs: bool = False, long_phase_s: float = LONG_PHASE_S) -> None:
        """With `only_logs`, a terminal is not used, as if there was none."""
        self._meter = meter
        self._line = LiveLine(sys.stderr)
        self._is_live = self._line.is_on and not only_logs
        self._long_phase_s = long_phase_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-progress", daemon=True)

    def __enter__(self) -> Self:
        if self._is_live:
            for handler in logging.getLogger().handlers:
                self._line.erase_for(handler)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Erases the line; nothing is logged from now on."""
        self._stop.set()
        self._thread.join()
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
                logged.add(phase)
                _log(progress)


def _log(progress: StartProgress) -> None:
    left = f", about {progress.eta_s:.0f} s left" if progress.eta_s else ""
    logger.info("starting for %.1f s: %s%s", progress.elapsed_s, progress.activity, left)
