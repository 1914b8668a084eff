"""A wall clock that a test can set for the processes it starts; skips the test without a C compiler."""

import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import pytest

_SOURCE = Path(__file__).with_name("jumping_clock.c")


class JumpingClock:
    """A process that gets `environment`, and every process that it starts, uses this clock."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler is installed")
        self._library = folder / "jumping_clock.so"
        self._shift = folder / "shift"
        self._shift.write_bytes(struct.pack("q", 0))
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", self._library, _SOURCE], check=True)

    def __enter__(self) -> Self:
        with self._shift.open("r+b") as file:
            self._mapped = mmap.mmap(file.fileno(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._mapped.close()

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables of a process that uses this clock."""
        preloaded = " ".join([str(self._library), *os.environ.get("LD_PRELOAD", "").split()])
        return {"LD_PRELOAD": preloaded, "JUMPING_CLOCK": str(self._shift)}

    def set(self, seconds: int) -> None:
        """Sets the clock ahead of the real one by this many seconds, or behind it if negative."""
        self._mapped[:] = struct.pack("q", seconds)
