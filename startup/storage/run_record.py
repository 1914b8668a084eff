"""Records of this user's running servers and standbys, which `vllm-cli ps` and `stop` read.

A record is a locked file. The kernel releases the lock when the process ends, and a file without a lock is no
record. The folder's path depends on no environment variable, because a service may have other variables than
the shell in which `ps` runs.
"""

import fcntl
import functools
import json
import logging
import os
import stat
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from base.machine.files import write_whole
from startup import start_origin

logger = logging.getLogger(__name__)

ROUTER: Final = "router"
STANDBY: Final = "standby"
"""The value of `engine` in a standby's record."""
_FOLDERS: Final = ("/tmp/vllm-cli-{user}", "/run/user/{user}/vllm-cli", "/dev/shm/vllm-cli-{user}")
"""Records are kept in the first usable folder. Another user may have created a folder with the first name."""
_NETWORK: Final = Path("/proc/self/ns/net")
MODE: Final = 0o1600
"""Records' files have the sticky bit, because systemd-tmpfiles removes old files without this bit."""
_LOCK: Final = "hhqqi0q"
"""`struct flock` (fcntl(2)): type, whence, start, length, holder."""
_RECORD: Final = ".json"
_NOTE: Final = ".start"
"""The ending of the file with facts about a start. Inside a record, other releases would reject them."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The record of one running process."""

    engine: str
    model: str | None = None
    address: str | None = None
    """The address from `listener.describe`. None if the server listens nowhere."""
    front_pid: int | None = None
    """The pid of the front process, which the user started. None if this server was not started warm."""
    owner_pid: int | None = None
    """The pid of the only process that may use this standby. None if any process may use it."""
    pid: int = 0
    start: Mapping[str, Any] | None = None
    """Facts about the start that the process has added through `run_recorded`. None if there are none."""


@contextmanager
def run_recorded(record: RunRecord) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Keeps a record of this process during the block, if a file can be written.

    Yields a function that adds facts about the start, as JSON values. Any thread may call the function.
    """
    path = ""
    try:
        path = _write(record)
    except OSError as err:
        logger.debug("`vllm-cli ps` does not list this process: %s", err)
    try:
        yield functools.partial(_note, path)
    finally:
        if path:
            _remove(path)


def read_run_records() -> list[RunRecord]:
    """The records of processes that run in this network namespace. Removes records of killed processes."""
    try:
        with os.scandir(record_folder()) as entries:
            paths = [entry.path for entry in entries]
    except OSError as err:
        _tell_once(str(err))
        return []
    for path in paths:
        if path.endswith(_NOTE) and not os.path.exists(path.removesuffix(_NOTE)):  # noqa: PTH110
            with suppress(OSError):
                os.unlink(path)  # noqa: PTH108 - belongs to a record that another release has removed
    return [record for path in paths if (record := _read(path)) is not None]


def read_start(pids: Iterable[int]) -> Mapping[str, Any]:
    """The newest facts that one of these processes has added about its start. Empty if there are none.

    Use this in a process with a record, because `read_run_records` would release the lock on that record.
    """
    with suppress(OSError):
        notes = [note for pid in pids for note in Path(record_folder()).glob(f"{pid}-*{_NOTE}")]
        newest = max(notes, key=lambda note: note.stat().st_mtime_ns, default=None)
        return {} if newest is None else _read_note(str(newest).removesuffix(_NOTE)) or {}
    return {}


@functools.cache
def _tell_once(problem: str) -> None:
    logger.warning("running servers are not known: %s", problem)


def _write(record: RunRecord) -> str:
    """Writes a record and returns its path. The file gets its name once it is complete and locked."""
    warm = start_origin.warm
    front_pid = warm.front_pid if warm is not None else None
    content = asdict(replace(record, front_pid=front_pid, pid=os.getpid()))
    content["network"] = str(_NETWORK.readlink())
    del content["start"]
    path = f"{record_folder()}/{os.getpid()}-{time.monotonic_ns()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(fd, json.dumps(content).encode())
    os.rename(path, f"{path}{_RECORD}")  # noqa: PTH104
    return f"{path}{_RECORD}"


def _note(path: str, start: Mapping[str, Any]) -> None:
    if path:
        with suppress(OSError):
            write_whole(Path(f"{path}{_NOTE}"), json.dumps(start), mode=MODE)


def _remove(path: str) -> None:
    for name in (path, f"{path}{_NOTE}"):
        with suppress(OSError):
            os.unlink(name)  # noqa: PTH108


def _read(path: str) -> RunRecord | None:
    """The record with the pid in this process's pid namespace. None if the recorded process has ended."""
    if not path.endswith(_RECORD):
        return None
    with suppress(OSError, ValueError, TypeError), open(path, "rb") as file:  # noqa: PTH123
        lock = struct.pack(_LOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, *_, pid = struct.unpack(_LOCK, fcntl.fcntl(file, fcntl.F_GETLK, lock))
        if kind == fcntl.F_UNLCK:
            _remove(path)
            return None
        content = json.load(file)
        if pid > 0 and content.pop("network") == str(_NETWORK.readlink()):
            record = RunRecord(**content, start=_read_note(path))
            return record if record.pid == pid else replace(record, pid=pid, front_pid=None, owner_pid=None)
    return None


def _read_note(path: str) -> dict[str, Any] | None:
    with suppress(OSError, ValueError), open(f"{path}{_NOTE}", "rb") as file:  # noqa: PTH123
        note = json.load(file)
        return note if isinstance(note, dict) else None
    return None


def record_folder() -> str:
    """The folder of records and logs, closed to other users. Raises OSError if it cannot be created."""
    problems: list[OSError] = []
    for folder in _FOLDERS:
        try:
            return _own_folder(folder.format(user=os.geteuid()))
        except OSError as err:
            problems.append(err)
    raise problems[0]


def _own_folder(path: str) -> str:
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)  # noqa: PTH102
    status = os.lstat(path)
    is_own_folder = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    if not is_own_folder or stat.S_IMODE(status.st_mode) & 0o077:
        raise PermissionError(f"{path} must be a folder of this user with mode 0700")
    return path
