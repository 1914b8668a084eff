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


def ensure_temp_folder() -> None:
    """With a root file system that is read-only and no /tmp, shared memory is taken.

    Before any child exists, as it sets TMPDIR. The folders are those of `tempfile`, whose import takes 10 ms.

    Raises:
        StartupError: there is no folder at all.
    """
    named = [folder for variable in _VARIABLES if (folder := variable.get())]
    if any(map(_is_usable, (*named, *_FOLDERS, os.curdir))):
        return
    tried = ", ".join((*named, *_FOLDERS))
    if not _is_usable(str(SHM)):
        raise StartupError(f"no temporary file can be made in {tried}: mount a tmpfs on /tmp, or set TMPDIR")
    logger.warning("no temporary file can be made in %s: taking %s; mount a tmpfs on /tmp, or set TMPDIR", tried, SHM)
    os.environ[env.TMPDIR.name] = str(SHM)


def _is_usable(folder: str) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)
