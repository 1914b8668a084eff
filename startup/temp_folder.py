"""Makes sure that there is a folder for temporary files: the forkserver's socket is made in one."""

import logging
import os
from pathlib import Path
from typing import Final

from envs.registry import env
from startup.errors import StartupError

logger = logging.getLogger(__name__)

_VARIABLES: Final = (env.TMPDIR, env.TEMP, env.TMP)
_FOLDERS: Final = ("/tmp", "/var/tmp", "/usr/tmp")
SHM: Final = Path("/dev/shm")
_MOST_BYTES: Final = 107 - len("/pymp-12345678/listener-12345678")
"""A socket's address has room for so many (unix(7), `sun_path`), of which multiprocessing needs some itself."""


def ensure_temp_folder() -> None:
    """With a root file system that is read-only and no /tmp, shared memory is taken; the path must not be too long.

    Before any child exists, as it sets TMPDIR. The folders are those of `tempfile`, whose import takes 10 ms.

    Raises:
        StartupError: there is no folder at all, or none whose path is short enough.
    """
    named = [folder for variable in _VARIABLES if (folder := variable.get())]
    found = next(filter(_is_usable, (*named, *_FOLDERS, os.curdir)), None)
    if found is not None:
        _ensure_short(found)
        return
    tried = ", ".join((*named, *_FOLDERS))
    if not _is_usable(str(SHM)):
        raise StartupError(f"no temporary file can be made in {tried}: mount a tmpfs on /tmp, or set TMPDIR")
    logger.warning("no temporary file can be made in %s: taking %s; mount a tmpfs on /tmp, or set TMPDIR", tried, SHM)
    os.environ[env.TMPDIR.name] = str(SHM)


def _ensure_short(folder: str) -> None:
    """A longer path than a socket's address has room for is given up for another one."""
    num_bytes = len(os.fsencode(Path(folder).absolute()))
    if num_bytes <= _MOST_BYTES:
        return
    other = next(filter(_is_usable, (*_FOLDERS, str(SHM))), None)
    if other is None:
        raise StartupError(f"{folder} is too long for a socket in it: set TMPDIR to a path of {_MOST_BYTES} bytes")
    logger.warning(
        "temporary files go to %s: a socket in %s would have too long an address; set TMPDIR to a path of %d bytes",
        other,
        folder,
        _MOST_BYTES,
    )
    os.environ[env.TMPDIR.name] = other


def _is_usable(folder: str) -> bool:
    """Whether a file can be made there and hold something, as `tempfile` tries it: the disk may be full."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return False
    path = f"{folder}/vllm-cli-{os.getpid()}-probe"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError:
        return False
    try:
        return os.write(fd, b"\0") == 1
    except OSError:
        return False
    finally:
        os.close(fd)
        os.unlink(path)  # noqa: PTH108 - as the rest of it
