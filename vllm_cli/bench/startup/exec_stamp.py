"""The moment at which a command was executed.

Runs as a script, too (`python -I -S exec_stamp.py STAMP_FILE WORD...`), which writes the time to a file and
executes the command: the time before the command's exec, in which the supervisor and this interpreter start,
must not count as the command's. The stamp is in monotonic nanoseconds, a clock that all processes share.
"""

import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

CANNOT_RUN: Final = 127
"""Exit status when the command cannot be executed; the same as a shell's."""
_POLL_S: Final = 0.001


class ExecStamp:
    """The file to which the script writes the time."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vllm-cli-bench-")
        self._path = Path(self._folder.name) / "stamp"

    def close(self) -> None:
        """Removes the file."""
        self._folder.cleanup()

    @property
    def stamp_words(self) -> list[str]:
        """The words to put in front of the command's words."""
        return [sys.executable, "-I", "-S", __file__, str(self._path)]

    async def wait(self, ensure_alive: Callable[[], None]) -> int:
        """Waits for the stamp, in monotonic nanoseconds; `ensure_alive` raises if the command has exited."""
        while True:
            text = self._path.read_text() if self._path.exists() else ""
            if text.endswith("\n"):
                return int(text)
            ensure_alive()
            await asyncio.sleep(_POLL_S)


def _main() -> int:
    stamp_file, *words = sys.argv[1:]
    if re.match(r"[A-Za-z_]\w*=", words[0]):
        words = ["env", *words]
    try:
        Path(stamp_file).write_text(f"{time.monotonic_ns()}\n")
        os.execvp(words[0], words)
    except OSError as error:
        sys.stderr.write(f"{words[0]}: {error.strerror}\n")
    return CANNOT_RUN


if __name__ == "__main__":
    sys.exit(_main())
