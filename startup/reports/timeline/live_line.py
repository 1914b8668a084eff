"""A line on a terminal that shows progress and is rewritten in place. Other streams get no such line."""

import logging
import os
from threading import RLock
from typing import Final, TextIO

_ERASE: Final = "\r\x1b[K"
_BAR_WIDTH: Final = 20
_USUAL_WIDTH: Final = 80


class LiveLine:
    """Owns the last line of a terminal. Any thread may use it, even while another thread logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = RLock()  # a signal's handler may log while its thread writes
        self._is_shown = False
        self.is_on = stream.isatty()
        os.register_at_fork(after_in_child=self._forget)

    def show(self, text: str) -> None:
        """Replaces the text of the line. A text that is wider than the terminal is cut."""
        with self._lock:
            if self.is_on:
                self._write(_ERASE + text[: self._width - 1])
                self._is_shown = True

    def clear(self) -> None:
        """Erases the line, so that other text can take its place."""
        with self._lock:
            if self._is_shown:
                self._write(_ERASE)
                self._is_shown = False

    def close(self) -> None:
        """Erases the line. Later calls of `show` do nothing."""
        self.clear()
        self.is_on = False

    def erase_for(self, handler: logging.Handler) -> None:
        """Erases the line before each record of this handler. `show` waits until the record is written."""
        emit = handler.emit

        def erase_and_emit(record: logging.LogRecord) -> None:
            with self._lock:
                self.clear()
                emit(record)

        handler.emit = erase_and_emit  # type: ignore[method-assign]

    def _forget(self) -> None:
        """Called in a forked process, in which no thread can release the lock. The parent owns the line."""
        self._lock = RLock()
        self._is_shown = False

    @property
    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or _USUAL_WIDTH
        except OSError:
            return _USUAL_WIDTH

    def _write(self, text: str) -> None:
        """Writes to the terminal. If the terminal was closed, nothing is shown from now on."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self.is_on = False


def draw_bar(progress: float) -> str:
    """Draws a bar for the share `progress` (0 to 1), for example `[#####---------------]  25 %`."""
    full = round(progress * _BAR_WIDTH)
    return f"[{'#' * full}{'-' * (_BAR_WIDTH - full)}] {progress:4.0%}"
