"""Records of the running servers and standbys of this user, which `vllm-cli ps` and `stop` read.

A record is a locked file. The kernel releases the lock with the process, so that a killed one has no record.
The folder depends on no variable: a service has others than the shell in which `ps` runs.
"""

import fcntl
import json
import logging
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from startup.ground import start_origin

logger = logging.getLogger(__name__)

ROUTER: Final = "router"
STANDBY: Final = "standby"
"""In place of an engine."""
_FOLDER: Final = "/tmp/vllm-cli-{user}"
_NETWORK: Final = Path("/proc/self/ns/net")
MODE: Final = 0o1600
"""systemd-tmpfiles removes old files, but none with the sticky bit."""
_LOCK: Final = "hhqqi0q"
"""`struct flock` (fcntl(2)): type, whence, start, length, holder."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One running process."""

    engine: str
    model: str | None = None
    address: str | None = None
    """As `listener.describe` writes it; None if it listens nowhere."""
    front_pid: int | None = None
    """In a warm start, the process that the user started."""
    owner_pid: int | None = None
    """The process that alone uses this standby."""
    pid: int = 0


@contextmanager
def run_recorded(record: RunRecord) -> Iterator[None]:
    """Keeps a record of this process during the block; there is none where no file can be written."""
    path = ""
    try:
        path = _write(record)
    except OSError as err:
        logger.debug("`vllm-cli ps` does not list this process: %s", err)
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(path)  # noqa: PTH108


def read_run_records() -> list[RunRecord]:
    """The records of all processes that run in this network namespace; removes those of killed ones."""
    try:
        return [record for path in os.scandir(record_folder()) if (record := _read(path.path)) is not None]
    except OSError:
        return []


def _write(record: RunRecord) -> str:
    """The file has its name once it is complete and locked; the lock ends with this process."""
    warm = start_origin.warm
    front_pid = warm.front_pid if warm is not None else None
    content = asdict(replace(record, front_pid=front_pid, pid=os.getpid())) | {"network": str(_NETWORK.readlink())}
    path = f"{record_folder()}/{os.getpid()}-{time.monotonic_ns()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(fd, json.dumps(content).encode())
    os.rename(path, f"{path}.json")  # noqa: PTH104
    return f"{path}.json"


def _read(path: str) -> RunRecord | None:
    """The record of a running process, with its process id as seen from here."""
    if not path.endswith(".json"):
        return None
    with suppress(OSError, ValueError, TypeError), open(path, "rb") as file:  # noqa: PTH123
        lock = struct.pack(_LOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, *_, pid = struct.unpack(_LOCK, fcntl.fcntl(file, fcntl.F_GETLK, lock))
        if kind == fcntl.F_UNLCK:
            os.unlink(path)  # noqa: PTH108
            return None
        content = json.load(file)
        if pid > 0 and content.pop("network") == str(_NETWORK.readlink()):
            record = RunRecord(**content)
            return record if record.pid == pid else replace(record, pid=pid, front_pid=None, owner_pid=None)
    return None


def record_folder() -> str:
    """Has logs, too; raises OSError if it cannot be created, or if others may enter it."""
    path = _FOLDER.format(user=os.geteuid())
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)  # noqa: PTH102
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise PermissionError(f"{path} must be a folder of this user with mode 0700")
    return path
