"""Chooses the folder for temporary files, and creates in it a folder for one start's files and sockets."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from base.machine.files import write_problem
from envs.registry import env
from startup.errors import StartupError

logger = logging.getLogger(__name__)

_VARIABLES: Final = (env.TMPDIR, env.TEMP, env.TMP)
_FOLDERS: Final = ("/tmp", "/var/tmp", "/usr/tmp")
SHM: Final = Path("/dev/shm")
_PREFIX: Final = "vcli-"
MAX_BYTES: Final = 107 - len("/12345678-1234-1234-1234-123456789012")
"""The longest usable path of the folder, in bytes.

A socket's address has at most 107 bytes (unix(7), `sun_path`), and vLLM's file names take 37 of them.
multiprocessing's sockets in a folder of `own_folder` need fewer bytes.
"""

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def ensure_temp_folder() -> None:
    """Sets TMPDIR if no usual folder is writable, or if the folder's path is too long for a socket.

    If no usual folder is writable, TMPDIR becomes /dev/shm or else the working folder. If the path is too
    long, TMPDIR becomes a usual folder or /dev/shm. Both changes log a warning. Call this function before any
    child process exists.

    This function does not use `tempfile`, which takes 10 ms to import and prefers the working folder to
    /dev/shm. The working folder may be a volume or a folder of the user.

    Raises:
        StartupError: no folder is writable, or the path of each writable folder is too long.
    """
    usual, found = _usual_folders(), usable_folder()
    for folder in usual[: -len(_FOLDERS)]:
        if folder != found and (fault := write_problem(folder)) is not None:
            logger.warning("TMPDIR, TEMP or TMP is %s, which cannot be written to (%s): using %s", folder, fault, found)
            break
    problem, remedy = f"no temporary file can be created in {', '.join(usual)}", "mount a tmpfs on /tmp, or set TMPDIR"
    if found is None:
        raise StartupError(f"{problem}: {remedy}", cause="folder-not-writable")
    if found not in usual:
        found = os.path.abspath(found)  # noqa: PTH100 - as the other paths here
        logger.warning("%s: using %s; %s", problem, found, remedy)
        os.environ[env.TMPDIR.name] = found
    _ensure_short(found)


def usable_folder() -> str | None:
    """The first folder for temporary files that is writable now. None if there is none."""
    return next(filter(_is_usable, (*_usual_folders(), str(SHM), os.curdir)), None)


def _usual_folders() -> list[str]:
    return [*(folder for variable in _VARIABLES if (folder := variable.get())), *_FOLDERS]


@contextmanager
def own_folder(parent: str | None = None) -> Iterator[Path]:
    """Creates a folder and removes it after the block. First removes folders that killed processes have left.

    This process and its forks hold a lock on the folder. The kernel releases it when the last of them ends.
    """
    import shutil  # noqa: PLC0415 - at the top, they would delay each command
    import tempfile  # noqa: PLC0415

    remove_left_behind(parent)
    while True:
        folder = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
        with suppress(FileNotFoundError):  # another process took it for a left-over, before it was locked
            fd = os.open(folder, _OPEN)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(fd, fcntl.LOCK_EX)
            if os.path.exists(folder):  # noqa: PTH110
                break
            os.close(fd)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


def remove_left_behind(parent: str | None = None) -> None:
    """Removes this user's folders of `own_folder` that no running process has locked."""
    import shutil  # noqa: PLC0415 - as above
    import tempfile  # noqa: PLC0415

    with suppress(OSError), os.scandir(parent or tempfile.gettempdir()) as entries:  # else it cannot be listed
        for entry in [*filter(_is_own, entries)]:  # a copy, because the folders are removed meanwhile
            with suppress(OSError):  # it is locked, or gone
                fd = os.open(entry.path, _OPEN)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(entry.path, ignore_errors=True)
                finally:
                    os.close(fd)


def _is_own(entry: "os.DirEntry[str]") -> bool:
    return entry.name.startswith(_PREFIX) and entry.stat(follow_symlinks=False).st_uid == os.geteuid()


def _ensure_short(folder: str) -> None:
    num_bytes = len(os.fsencode(Path(folder).absolute()))
    if num_bytes <= MAX_BYTES:
        return
    other = next(filter(_is_usable, (*_FOLDERS, str(SHM))), None)
    if other is None:
        raise StartupError(f"{folder} is too long for a socket in it: set TMPDIR to at most {MAX_BYTES} bytes")
    text = "temporary files go to %s: the address of a socket in %s would be too long. Set TMPDIR to at most %d bytes"
    logger.warning(text, other, folder, MAX_BYTES)
    os.environ[env.TMPDIR.name] = other


def _is_usable(folder: str) -> bool:
    return write_problem(folder) is None
