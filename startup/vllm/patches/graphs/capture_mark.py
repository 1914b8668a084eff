"""Remembers for later starts that late captures of CUDA graphs with the same settings have failed.

An engine that captures holds a lock on a file, the note. The kernel releases the lock, however the engine
ends. So a note without a lock is of an engine that died in a capture. The note of an engine that captures
now, or an engine that is killed between two captures, says nothing about captures.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from startup.storage.caches import CachedValue, of_type
from startup.vllm.serving.start_metrics import named_capture

REMEMBERED_S: Final = 7 * 86400.0
DIED: Final = "the engine ended in the capture of a graph"
_ENDING: Final = ".capturing"


@dataclass(frozen=True)
class CaptureMark:
    """The failure of captures with one configuration. Sent from a worker to EngineCore."""

    cached: CachedValue
    """Contains why captures have failed. It expires, and the last capture of a later start removes it."""

    def failure(self) -> str | None:
        """Why captures have failed in an earlier start. None if they have not. Called before captures."""
        for note in self._notes():
            if _has_no_owner(note):
                self.remember(DIED)
                note.unlink(missing_ok=True)
        return self.cached.read(of_type(str), is_own=True)

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """The engine captures in this block. If it dies there, the next start knows."""
        note = self.cached.path.with_suffix(f".{os.urandom(8).hex()}{_ENDING}")
        fd = _lock(note)
        try:
            with named_capture(note):
                yield
        finally:
            if fd is not None:
                with suppress(OSError):
                    note.unlink(missing_ok=True)
                os.close(fd)

    def remember(self, failure: str) -> None:
        self.cached.write(failure)

    def forget(self) -> None:
        self.cached.remove()

    def _notes(self) -> list[Path]:
        """The notes of all engines with this configuration. Removes notes that are too old."""
        found = [*self.cached.path.parent.glob(f"{self.cached.path.stem}.*{_ENDING}")]
        for note in found:
            with suppress(OSError):
                if time.time() - note.stat().st_mtime > REMEMBERED_S and _has_no_owner(note):
                    note.unlink(missing_ok=True)
        return [note for note in found if note.exists()]


def _lock(note: Path) -> int | None:
    """Makes a note, which is locked before others can see it. None where no file can be written."""
    hidden = note.with_suffix(".new")
    try:
        hidden.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    with suppress(OSError):  # a file system without locks
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with suppress(OSError):
        hidden.rename(note)
    return fd


def _has_no_owner(note: Path) -> bool:
    """Whether no process holds the lock. On a file system without locks, no process seems to hold it."""
    try:
        fd = os.open(note, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)  # NFS locks only what may be written
    except OSError:
        return False  # removed meanwhile
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        os.close(fd)
    return True
