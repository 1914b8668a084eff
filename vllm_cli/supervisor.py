"""Runs a server command. Stops it with all descendants when the parent process exits or closes the pipe.

This module runs as a script (`python -I supervisor.py GRACE_S`), because only a separate process can clean up
after a crash or a SIGKILL of its parent (a benchmark or `bake`).

The parent writes lines to the script's standard input. The first line is the command as a JSON list. It is
not on the script's command line, which other users can read. Just before the script executes the command, it
takes the time, in nanoseconds of the monotonic clock, which all processes share. It writes the time as a
line. The lines `pause` and `resume` freeze and resume the server. Then the script echoes the line. The end of
the input stops the server. The script's exit status is the server's exit status, or 128 + N after signal N.
The server's output goes to the script's standard error.
"""

import contextlib
import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.2
CANNOT_RUN = 127
"""The exit status if the command cannot be executed, as in a shell."""


def start_supervisor(arguments: Sequence[str], *, grace_s: float, **options: Any) -> subprocess.Popen[bytes]:
    """Starts this script with a command. `options` are those of `Popen`."""
    script = [sys.executable, "-I", __file__, str(grace_s)]
    process = subprocess.Popen(script, stdin=subprocess.PIPE, start_new_session=True, **options)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps([*arguments]).encode() + b"\n")
        process.stdin.flush()
    return process


class Supervisor:
    """Owns a server process and all its descendants. The server has its own session and process group."""

    def __init__(self, arguments: list[str], *, grace_s: float) -> None:
        self._grace_s = grace_s
        self._is_stop_requested = False
        signal.signal(signal.SIGTERM, self._record_signal)  # before there is a server that could be left behind
        begin_ns = time.monotonic_ns()
        self._server = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True)
        os.write(sys.stdout.fileno(), f"{begin_ns}\n".encode())

    def watch(self) -> int:
        """Executes commands from standard input until the input or the server ends. Stops all processes."""
        with selectors.DefaultSelector() as selector:
            selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
            while self._server.poll() is None and not self._is_stop_requested:
                if selector.select(_POLL_S):
                    commands = os.read(sys.stdin.fileno(), 4096)
                    if not self._execute(commands):
                        break
        self._stop()
        status = self._server.returncode
        return status if status >= 0 else 128 - status

    def _record_signal(self, *_: object) -> None:
        self._is_stop_requested = True

    def _execute(self, commands: bytes) -> bool:
        """Executes the commands. Returns False at the end of the input."""
        for command in commands.split():
            self._signal_all(signal.SIGSTOP if command == b"pause" else signal.SIGCONT)
            os.write(sys.stdout.fileno(), command + b"\n")
        return bool(commands)

    def _stop(self) -> None:
        self._signal_all(signal.SIGCONT)
        with contextlib.suppress(ProcessLookupError):
            self._server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._server.wait(self._grace_s)
        while survivors := self._descendants():
            self._signal_all(signal.SIGKILL)
            psutil.wait_procs(survivors, timeout=_POLL_S)
        self._server.wait()

    def _signal_all(self, number: signal.Signals) -> None:
        for process in self._descendants():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _descendants(self) -> list[psutil.Process]:
        return [
            process for process in psutil.Process().children(recursive=True) if _status(process) != psutil.STATUS_ZOMBIE
        ]


def _status(process: psutil.Process) -> str:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_ZOMBIE


def _main() -> int:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # gets orphans, so that daemons are stopped, too
    with os.fdopen(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as commands:
        command = commands.readline()
    if not command:  # the parent has ended
        return 0
    arguments: list[str] = json.loads(command)
    try:
        supervisor = Supervisor(arguments, grace_s=float(sys.argv[1]))
    except OSError as error:
        sys.stderr.write(f"{arguments[0]}: {error.strerror}\n")
        return CANNOT_RUN
    return supervisor.watch()


if __name__ == "__main__":
    sys.exit(_main())
