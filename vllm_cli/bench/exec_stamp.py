"""Measures the moment at which a command is executed.

As a script (`python -I -S exec_stamp.py STAMP_FILE WORD...`), this module writes the time to a file and then
executes the command. So the time that the supervisor and this interpreter take is not counted. The time is in
nanoseconds of the monotonic clock, which all processes share.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

_CANNOT_RUN = 127
"""The exit status if the command cannot be executed, as in a shell."""
_POLL_S = 0.001


def stamp_words(stamp: Path) -> tuple[str, ...]:
    """The words that go in front of the command's words."""
    return (sys.executable, "-I", "-S", __file__, str(stamp))


async def wait_for_stamp(stamp: Path, ensure_alive: Callable[[], None]) -> int:
    """The moment of exec in nanoseconds. `ensure_alive` raises if the command has exited."""
    while not (text := stamp.read_text() if stamp.exists() else "").endswith("\n"):
        ensure_alive()
        await asyncio.sleep(_POLL_S)
    return int(text)


def _main() -> int:
    stamp, *words = sys.argv[1:]
    try:
        Path(stamp).write_text(f"{time.monotonic_ns()}\n")
        os.execvp(words[0], words)
    except OSError as error:
        sys.stderr.write(f"{words[0]}: {error.strerror}\n")
    return _CANNOT_RUN


if __name__ == "__main__":
    sys.exit(_main())
