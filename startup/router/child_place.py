"""Where the models' processes live: a folder of their sockets, and the environment that they get."""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from envs.registry import env
from startup.logs.options import LogOptions
from startup.router.child_process import inherited_environment

logger = logging.getLogger(__name__)

_PREFIX: Final = "vllm-cli-router-"


class ChildPlaces:
    """Belongs to one router; the folder is locked for as long as its process lives."""

    def __init__(self, logs: LogOptions) -> None:
        """Removes the folders of routers that were killed."""
        _remove_stale()
        self._folder, self._lock_fd = _create_locked()
        self._base = inherited_environment()
        self._base[env.VCLI_LOG_FORMAT.name] = logs.format
        self._base[env.VLLM_LOGGING_LEVEL.name] = logs.level

    @property
    def folder(self) -> str:
        """Of the sockets."""
        return str(self._folder)

    def socket_path(self, number: int) -> str:
        """Where a process listens."""
        return str(self._folder / f"{number}.sock")

    def environment(self, number: int, variables: Mapping[str, str]) -> dict[str, str]:
        """The environment of a process: the router's, without what is only for the router."""
        return {**self._base, **variables, env.VCLI_ROUTER.name: self.socket_path(number)}

    def close(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock_fd)


def _create_locked() -> tuple[Path, int]:
    """A new folder, and the descriptor that keeps it locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if folder.exists():
            return folder, fd
        os.close(fd)  # another router has taken it for a stale one, in the moment before it was locked


def _remove_stale() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if folder.lstat().st_uid == os.geteuid():
                _remove_if_free(folder)


def _remove_if_free(folder: Path) -> None:
    """Removes it unless its router lives; raises OSError if it cannot be read or is locked."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(fd)
