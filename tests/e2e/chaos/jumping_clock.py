"""A wall clock that jumps, for the processes that are started with it; skips the test where nothing compiles C."""

import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

_SOURCE = Path(__file__).with_name("jumping_clock.c")


class JumpingClock:
    """What `environment` is given to has this clock, and so has whatever it starts."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("there is no C compiler here to make a clock that jumps")
        self._library = folder / "jumping_clock.so"
        self._shift = folder / "shift"
        self._shift.write_bytes(struct.pack("q", 0))
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", self._library, _SOURCE], check=True)

    def __enter__(self) -> Self:
        with self._shift.open("r+b") as file:
            self._mapped = mmap.mmap(file.fileno(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mapped.close()

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables of a process that lives by this clock."""
        preloaded = " ".join([str(self._library), *os.environ.get("LD_PRELOAD", "").split()])
        return {"LD_PRELOAD": preloaded, "JUMPING_CLOCK": str(self._shift)}

    def set(self, seconds: int) -> None:
        """From now on the clock is so far ahead of the real one, or behind it."""
        self._mapped[:] = struct.pack("q", seconds)
