"""The moment at which a command was executed."""

import asyncio
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from vllm_cli.bench.startup import exec as startup_exec

_POLL_S = 0.001


class ExecStamp:
    """The file to which `exec.py` writes the time; a context manager that removes it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vllm-cli-bench-")
        self._path = Path(self._folder.name) / "stamp"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    @property
    def stamp_words(self) -> list[str]:
        """The words to put in front of the command's words."""
        return [sys.executable, "-I", "-S", startup_exec.__file__, str(self._path)]

    async def wait(self, ensure_alive: Callable[[], None]) -> int:
        """Waits for the stamp, in monotonic nanoseconds; `ensure_alive` raises if the command has exited."""
        while True:
            text = self._path.read_text() if self._path.exists() else ""
            if text.endswith("\n"):
                return int(text)
            ensure_alive()
            await asyncio.sleep(_POLL_S)
