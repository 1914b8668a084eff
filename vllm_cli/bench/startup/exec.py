"""Writes the time to a file and executes the command to be timed.

Runs as a script (`python -I -S exec.py STAMP_FILE WORD...`): the time before the command's exec, in which the
supervisor and this interpreter start, must not count as the command's. The stamp is in monotonic nanoseconds,
a clock that all processes of the machine share.
"""

import os
import re
import sys
import time
from pathlib import Path

CANNOT_RUN = 127
"""Exit status when the command cannot be executed; the same as a shell's."""


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
