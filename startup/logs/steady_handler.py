"""Writes log lines to a stream that may temporarily fail, such as a file on a full disk."""

import logging
import sys
from typing import TextIO


class SteadyHandler(logging.StreamHandler[TextIO]):
    """Drops lines that cannot be written, and logs their number with the next line that can.

    The logging module would write a traceback for each failure, to the same stream.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._num_dropped = 0
        self._reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Runs with the handler's lock held."""
        if self._num_dropped:
            self._log_dropped(record)
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Counts failures of the stream; any other exception is an error in the program, and shown."""
        err = sys.exc_info()[1]
        if isinstance(err, OSError):
            self._num_dropped += 1
            self._reason = err.strerror or str(err)
        else:
            super().handleError(record)

    def _log_dropped(self, record: logging.LogRecord) -> None:
        num_dropped, self._num_dropped = self._num_dropped, 0
        message = "%d lines of this log were lost: standard error could not be written (%s)"
        args = (num_dropped, self._reason)
        note = logging.LogRecord(__name__, logging.WARNING, record.pathname, 0, message, args, None)
        super().emit(note)
        if self._num_dropped:  # still failing: the note itself does not count
            self._num_dropped = num_dropped
