"""Detects changed files, whether replaced in place, by a rename, or behind a symbolic link."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

from server.machine.file_stamps import FileStamp, read_stamp

_INTERVAL_S = 1.0


class FileWatch:
    """Polls files once a second on the event loop; reports a change when two polls in a row agree."""

    def __init__(
        self, paths: Iterable[str | Path], on_change: Callable[[], None], *, interval_s: float = _INTERVAL_S
    ) -> None:
        self._interval_s = interval_s
        self._paths = [Path(path) for path in paths]
        self._on_change = on_change
        self._reported = self._polled = self._read_stamps()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Starts polling; changes since this object was created count."""
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._compare)

    def close(self) -> None:
        """Stops polling."""
        if self._timer is not None:
            self._timer.cancel()

    def _compare(self) -> None:
        before, self._polled = self._polled, self._read_stamps()
        if self._polled == before and self._polled != self._reported:
            self._reported = self._polled
            self._on_change()
        self.start()

    def _read_stamps(self) -> list[FileStamp]:
        return [read_stamp(path) for path in self._paths]
