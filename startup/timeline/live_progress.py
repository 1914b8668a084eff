"""Shows the progress of a start on one line of the terminal; does nothing if there is no terminal."""

import logging
import sys
import threading
from types import TracebackType
from typing import Self

from startup.timeline.live_line import LiveLine
from startup.timeline.progress import ProgressMeter

_INTERVAL_S = 0.1


class LiveProgress:
    """A thread that reads the meter ten times a second and writes to standard error."""

    def __init__(self, meter: ProgressMeter) -> None:
        self._meter = meter
        self._line = LiveLine(sys.stderr)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-progress", daemon=True)

    def __enter__(self) -> Self:
        if self._line.is_on:
            for handler in logging.getLogger().handlers:
                self._line.erase_for(handler)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Erases the line."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._line.close()

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._line.show(str(self._meter.read()))
