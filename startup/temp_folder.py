"""Ensures that there is a folder for temporary files: multiprocessing creates sockets in it."""

import logging
import os
from pathlib import Path
from typing import Final

from base.machine.files import write_problem
from envs.registry import env
from startup.errors import StartupError

logger = logging.getLogger(__name__)

_VARIABLES: Final = (env.TMPDIR, env.TEMP, env.TMP)
_FOLDERS: Final = ("/tmp", "/var/tmp", "/usr/tmp")
SHM: Final = Path("/dev/shm")
_MAX_BYTES: Final = 107 - len("/pymp-12345678/listener-12345678")
"""Longest usable path: a socket's address (unix(7), `sun_path`) less the suffix of multiprocessing."""


def ensure_temp_folder() -> None:
    """Sets TMPDIR if no usual folder is writable (then to /dev/shm), or if its path is too long for a socket.

    To be called before any child process exists. The folders are those of `tempfile`, which takes 10 ms to
    import.

    Raises:
        StartupError: there is no writable folder, or none whose path is short enough.
    """
    named = [folder for variable in _VARIABLES if (folder := variable.get())]
    found = next(filter(_is_usable, (*named, *_FOLDERS, os.curdir)), None)
    if found is not None:
        _ensure_short(found)
        return
    tried = ", ".join((*named, *_FOLDERS))
    if not _is_usable(str(SHM)):
        raise StartupError(f"no temporary file can be created in {tried}: mount a tmpfs on /tmp, or set TMPDIR")
    logger.warning("no temporary file can be created in %s: using %s; mount a tmpfs on /tmp, or set TMPDIR", tried, SHM)
    os.environ[env.TMPDIR.name] = str(SHM)


def _ensure_short(folder: str) -> None:
    """Sets TMPDIR to another folder if this path is too long for a socket's address."""
    num_bytes = len(os.fsencode(Path(folder).absolute()))
    if num_bytes <= _MAX_BYTES:
        return
    other = next(filter(_is_usable, (*_FOLDERS, str(SHM))), None)
    if other is None:
        raise StartupError(f"{folder} is too long for a socket in it: set TMPDIR to at most {_MAX_BYTES} bytes")
    logger.warning(
        "temporary files go to %s: the address of a socket in %s would be too long; set TMPDIR to at most %d bytes",
        other,
        folder,
        _MAX_BYTES,
    )
    os.environ[env.TMPDIR.name] = other


def _is_usable(folder: str) -> bool:
    return write_problem(folder) is None
