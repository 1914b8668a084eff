"""A file system that holds next to nothing, which only the processes that are launched into it see."""

import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

_ENTER = "mount -t tmpfs -o size={size},nr_inodes={num_inodes} none {folder} && echo mounted && exec cat"
"""Stays until its input ends, as it does with this process."""


class SmallDisk:
    """A tmpfs on a folder, in a mount namespace of its own; skips the test where none can be made.

    It is there for as long as the `with` block lasts, whatever is launched into it.
    """

    def __init__(self, folder: Path, num_bytes: int, *, num_files: int = 1000) -> None:
        """The folder must exist; everybody else goes on seeing what it holds."""
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
            pytest.skip("there is no unshare(1) here")
        assert self._keeper.stdout is not None
        if (answer := self._keeper.stdout.readline()) != "mounted\n":
            self._end()
            pytest.skip(f"no file system can be mounted here: {answer.strip()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def launcher(self) -> tuple[str, ...]:
        """Executes the words that follow where the file system is seen."""
        own_user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        return ("nsenter", f"--target={self._keeper.pid}", *own_user, "--mount", f"--wd={Path.cwd()}")

    def see(self, path: Path) -> Path:
        """How this process gets at something that only those inside see."""
        return Path(f"/proc/{self._keeper.pid}/root{path}")

    def fill(self, *, but: int = 0) -> None:
        """Not a byte is left, or so many (whole pages)."""
        state = os.statvfs(self.see(self._folder))
        with self.see(self._folder / "ballast").open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - but)

    def make_room(self) -> None:
        """What `fill` has taken is given back."""
        self.see(self._folder / "ballast").unlink()

    def _end(self) -> None:
        with self._keeper:
            self._keeper.kill()
