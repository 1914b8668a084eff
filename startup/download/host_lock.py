"""One download of a repository per host: a lock with a live owner, whose progress those who wait can read."""

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from startup.download.messages import DownloadProgress

_POLLED_EVERY_S: Final = 0.25
_RECORD_BYTES: Final = 1024
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_SILENT_S: Final = 60.0


class HostLock:
    """Held by one process; the kernel releases it however that process ends.

    The file's content is the owner's progress, written in one call, so that a reader never sees half of it.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def show(self, progress: DownloadProgress) -> None:
        """Tells the progress to the processes that wait."""
        if self._fd is not None:
            record = json.dumps({"pid": os.getpid(), **progress._asdict()}).encode()[:_RECORD_BYTES]
            os.pwrite(self._fd, record.ljust(_RECORD_BYTES), 0)


@contextmanager
def held_by_one(path: Path, on_wait: Callable[[DownloadProgress], None]) -> Iterator[HostLock]:
    """Waits until no other process holds the lock; without locks on this file system, goes on at once.

    Args:
        path: the lock's file.
        on_wait: takes the owner's progress, several times a second.

    Raises:
        OSError: the file cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        is_held = _acquire(fd, on_wait)
        yield HostLock(fd if is_held else None)
    finally:
        os.close(fd)


def _acquire(fd: int, on_wait: Callable[[DownloadProgress], None]) -> bool:
    since, before = time.monotonic(), b""
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            record = os.pread(fd, _RECORD_BYTES, 0)
            if record != before:
                since, before = time.monotonic(), record
            on_wait(_progress_of(record, time.monotonic() - since))
            time.sleep(_POLLED_EVERY_S)
        except OSError as err:
            if err.errno not in _NO_LOCKS:
                raise
            return False
        else:
            return True


def _progress_of(record: bytes, silent_s: float) -> DownloadProgress:
    try:
        fields: dict[str, Any] = json.loads(record)
        pid = fields.pop("pid")
        progress = DownloadProgress(**fields)
    except (ValueError, TypeError, KeyError, AttributeError):
        return DownloadProgress("", note="another start is downloading")
    silent = f", which has told nothing for {silent_s:.0f} s" if silent_s > _SILENT_S else ""
    return progress._replace(note=f"by the start with process {pid}{silent}")
