"""Runs a command of the Makefile as one line with its seconds. Shows its output only if it fails.

    python3 -m tools.step "Installing vllm-cli into .venv" .venv/bin/python -m tools.install -e .

On a terminal, the line counts the seconds meanwhile. This module imports only the standard library, because
nothing else is installed yet.
"""

import signal
import subprocess
import sys
import tempfile
import time
from typing import Final

_TICK_S: Final = 0.5
_NOT_FOUND: Final = 127
"""The exit code of a shell for a command that cannot be run."""


def main(text: str, *command: str) -> int:
    """Runs the command. Returns its exit code, or 128 and the number of the signal that has ended it."""
    is_terminal = sys.stdout.isatty()
    begin = time.monotonic()
    print(f"{text} ...", end="" if is_terminal else "\n", flush=True)
    with tempfile.TemporaryFile() as output:
        try:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        except OSError as err:
            print(f"\n{command[0]}: {err.strerror}", flush=True)
            return _NOT_FOUND
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the command, whose end ends the step
        while (code := _wait(child)) is None:
            if is_terminal:
                print(f"\r{text} ... {time.monotonic() - begin:.0f} s", end="", flush=True)
        result = "" if code == 0 else "failed after "
        before, after = ("\r", "\033[K") if is_terminal else ("", "")
        print(f"{before}{text}: {result}{time.monotonic() - begin:.0f} s{after}", flush=True)
        if code != 0:
            output.seek(0)
            sys.stdout.buffer.write(output.read())
            sys.stdout.flush()
    return code if code >= 0 else 128 - code


def _wait(child: subprocess.Popen[bytes]) -> int | None:
    """The exit code. None if the command still runs after a tick."""
    try:
        return child.wait(_TICK_S)
    except subprocess.TimeoutExpired:
        return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
