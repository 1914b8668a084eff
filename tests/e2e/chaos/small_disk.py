"""A tiny file system, visible only to the processes launched in its mount namespace."""

import os
import subprocess
from pathlib import Path
from typing import Self

import pytest

from tests.support.marks import how_to_install

_ENTER = "mount -t tmpfs -o size={size},nr_inodes={num_inodes} none {folder} && echo mounted && exec cat"
"""Keeps the namespace until its standard input ends, at the latest when this process ends."""


class SmallDisk:
    """A tmpfs on a folder, in its own mount namespace. It exists until the end of the `with` block.

    The test is skipped if the tmpfs cannot be mounted.
    """

    def __init__(self, folder: Path, num_bytes: int, *, num_files: int = 1000) -> None:
        """`folder` must exist. Other processes still see its original content."""
        self._folder = folder
        self._num_files = num_files
        self._num_bytes = num_bytes
        self._keeper: subprocess.Popen[str]

    def __enter__(self) -> Self:
        script = _ENTER.format(size=self._num_bytes, num_inodes=self._num_files + 1, folder=self._folder)
        own_user = () if os.geteuid() == 0 else ("--map-root-user",)
        try:
            self._keeper = subprocess.Popen(
                ["unshare", *own_user, "--mount", "sh", "-c", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        except FileNotFoundError:
            pytest.skip(how_to_install("unshare"))
        if (answer := self._keeper.stdout.readline()) != "mounted\n":
            self.__exit__()
            pytest.skip(f"no file system can be mounted: {answer.strip()}")
        return self

    def __exit__(self, *_: object) -> None:
        with self._keeper:
            self._keeper.kill()

    @property
    def launcher(self) -> tuple[str, ...]:
        """A launcher that executes a program in the mount namespace."""
        own_user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        return ("nsenter", f"--target={self._keeper.pid}", *own_user, "--mount", f"--wd={Path.cwd()}")

    def path_inside(self, path: Path) -> Path:
        """The path with which this process can open a path of the mount namespace."""
        return Path(f"/proc/{self._keeper.pid}/root{path}")

    def fill(self, *, but: int = 0) -> None:
        """Fills the disk, except for `but` bytes (whole pages)."""
        state = os.statvfs(self.path_inside(self._folder))
        with self.path_inside(self._folder / "ballast").open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - but)

    def make_room(self) -> None:
        """Frees the space that `fill` has taken."""
        self.path_inside(self._folder / "ballast").unlink()
