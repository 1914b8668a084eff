"""Keeps the standard streams usable, so that nobody who stops reading them changes what the program does.

A closed stream becomes /dev/null. A stream that nobody reads any more does, too, at the next write. Standard
error never raises an error: what cannot be written there, for example on a full disk, is lost.
"""

import errno
import os
import sys
from collections.abc import Callable
from typing import Any, Final, TextIO

from base.machine.descriptors import is_open

_NAMES: Final = ("stdin", "stdout", "stderr")
_NOBODY_READS: Final = (errno.EPIPE, errno.EIO)
"""Errors of writes to a pipe without a reader, and to a terminal that was closed."""


def keep_standard_streams() -> None:
    """Opens closed standard streams, and makes writes survive. Call it before other files are opened."""
    for fd, name in enumerate(_NAMES):
        if not is_open(fd):
            _open_nothing(fd)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(fd, mode, encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        raw = _raw(stream)
        if raw is not None and not hasattr(raw, "lost"):
            raw.lost = None
            raw.write = _surviving(raw, raw.write, raises=stream is sys.stdout)
        if stream.errors == "strict" or stream.encoding != "utf-8":
            # Otherwise a character that the stream lacks would be an error.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def take_lost(stream: TextIO) -> OSError | None:
    """Returns the error of the last text that was lost since the previous call. None if nothing was lost."""
    raw = _raw(stream)
    lost: OSError | None = getattr(raw, "lost", None)
    if lost is not None:
        raw.lost = None
    return lost


def is_read(stream: TextIO) -> bool:
    """Whether a write to the stream has not failed yet because nobody reads it."""
    return not getattr(_raw(stream), "is_unread", False)


def _surviving(raw: Any, write: Callable[[Any], int | None], *, raises: bool) -> Callable[[Any], int | None]:
    def survive(data: Any) -> int | None:
        try:
            return write(data)
        except OSError as err:
            if err.errno in _NOBODY_READS:
                raw.is_unread = True
                _open_nothing(raw.fileno())
            elif raises:
                raise
            else:
                raw.lost = err
            return len(data)

    return survive


def _open_nothing(fd: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null == fd:
        os.set_inheritable(fd, True)
    else:
        os.dup2(null, fd)
        os.close(null)


def _raw(stream: Any) -> Any:
    """The object that writes the stream's bytes. None if the stream is not a file."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    return raw if hasattr(raw, "__dict__") else None
