"""Log lines to a stream that may take nothing for a while, such as a file on a disk that is full."""

import logging
import sys
from typing import TextIO


class SteadyHandler(logging.StreamHandler[TextIO]):
    """Drops what the stream does not take, and says how much that was as soon as it takes something again.

    The logging module would answer each failure with a traceback, for which standard error has no room either.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._num_dropped = 0
        self._reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the handler's lock held."""
        if self._num_dropped:
            self._tell(record)
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """A fault of the stream's is counted; anything else is a mistake in the program, and shown."""
        err = sys.exc_info()[1]
        if isinstance(err, OSError):
            self._num_dropped += 1
            self._reason = err.strerror or str(err)
        else:
            super().handleError(record)

    def _tell(self, record: logging.LogRecord) -> None:
        num_dropped, self._num_dropped = self._num_dropped, 0
        message = "%d lines of this log were lost: standard error took nothing (%s)"
        args = (num_dropped, self._reason)
        note = logging.LogRecord(__name__, logging.WARNING, record.pathname, 0, message, args, None)
        super().emit(note)
        if self._num_dropped:  # it takes nothing yet: the note is none of the lost lines
            self._num_dropped = num_dropped
