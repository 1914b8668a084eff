"""Root file systems for starts as in containers: this machine's files as the image, changes in memory.

Each root is an overlay of `/` and a folder in /dev/shm, in a mount namespace of this process, which ends with
it. Needs the rights of root, but no container runtime.
"""

import functools
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from server.machine.libc import check, load_libc
from vllm_cli.errors import InputError

_CLONE_NEWNS: Final = 0x00020000
_MEMORY: Final = "/dev/shm"
_SHARED: Final = ("proc", "sys", "dev")
"""Folders that programs in the root share with the machine."""


class OverlayRoot:
    """One root; nothing that its programs write reaches the machine's files."""

    def __init__(self) -> None:
        """Raises InputError if this user may not mount, or the kernel has no overlay."""
        _enter_own_namespace()
        self._folder = TemporaryDirectory(prefix="vllm-cli-bench-root-", dir=_MEMORY)
        upper, work, self._root = (Path(self._folder.name, name) for name in ("upper", "work", "root"))
        for folder in (upper, work, self._root):
            folder.mkdir(mode=0o755)
        Path(self._folder.name).chmod(0o755)  # other users may run programs in it
        _mount("-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", str(self._root))
        for name in _SHARED:
            _mount("--rbind", f"/{name}", str(self._root / name))

    @property
    def words(self) -> list[str]:
        """The words to put in front of a command's words, to run it in this root and folder."""
        return ["chroot", str(self._root), "env", "-C", os.getcwd()]  # noqa: PTH109

    def close(self) -> None:
        """Discards the root with everything written to it."""
        subprocess.run(["umount", "--recursive", "--lazy", str(self._root)], check=False, capture_output=True)
        with suppress(OSError):
            self._folder.cleanup()


@functools.cache
def _enter_own_namespace() -> None:
    try:
        check(load_libc().unshare(_CLONE_NEWNS), "unshare")
    except OSError as err:
        raise InputError(f"A root of its own needs the rights of root: {err.strerror}.") from err
    _mount("--make-rprivate", "/")


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InputError(f"A root of its own cannot be mounted: {done.stderr.strip()}")
