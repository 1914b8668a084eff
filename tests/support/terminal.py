"""Reads the output of programs on a terminal. Runs an interactive shell with job control on a terminal."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Self

import psutil

from tests.support.cli import CLI
from tests.support.waiting import end_server

_TIMEOUT_S: Final = 240.0
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")
INTERRUPT: Final = "\x03"
SUSPEND: Final = "\x1a"
QUIT: Final = "\x1c"
"""The terminal turns these three keys into signals for its foreground process group."""


def read_terminal(descriptor: int) -> str:
    """Reads all output until the other end is closed, which Linux reports as EIO. Then closes this end."""
    data = b""
    with os.fdopen(descriptor, "rb", buffering=0) as terminal, suppress(OSError):
        while piece := terminal.read(65536):
            data += piece
    return data.decode()


def read_until(descriptor: int, expected: bytes) -> str:
    """Reads all output up to and including these bytes. Later output stays unread."""
    data = b""
    while not data.endswith(expected):
        data += os.read(descriptor, 1)
    return data.decode()


class Shell:
    """Runs bash on a terminal. The end of the `with` block closes the terminal and checks for leftovers."""

    def __init__(self, variables: Mapping[str, str], *, num_columns: int = 200) -> None:
        self._variables = {**os.environ, **variables, "PS1": "$ ", "TERM": "xterm", "HISTFILE": ""}
        self._num_columns = num_columns
        self.output = ""
        """All output of the terminal, with escape sequences."""
        self._num_seen = 0
        self._family: set[psutil.Process] = set()
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.terminal_fd, terminal_fd = pty.openpty()
        fcntl.ioctl(terminal_fd, termios.TIOCSWINSZ, struct.pack("4H", 50, self._num_columns, 0, 0))
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "bash", "--norc", "--noprofile", "-i"],
            stdin=terminal_fd,
            stdout=terminal_fd,
            stderr=terminal_fd,
            env=self._variables,
        )
        os.close(terminal_fd)
        return self

    def __exit__(self, *_: object) -> None:
        self.close_terminal()
        left = end_server(self.process, self._family)
        assert not left, f"left behind: {left}"

    def type(self, text: str) -> None:
        """Types keys. A command ends with a newline."""
        os.write(self.terminal_fd, text.encode())

    def wait_for(self, pattern: str) -> str:
        """Waits until new output matches. Returns the match. The next search begins after it."""
        deadline = time.monotonic() + _TIMEOUT_S
        while not (match := re.compile(pattern).search(self.text, self._num_seen)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.text!r}"
            if select.select([self.terminal_fd], [], [], 0.1)[0]:
                self.output += os.read(self.terminal_fd, 65536).decode(errors="replace")
        self._num_seen = match.end()
        return match[0]

    def exit_code(self) -> int:
        """Waits until the last command has ended, and returns its exit code."""
        self.type("echo co''de-$?-\n")
        return int(self.wait_for(r"code-\d+-").split("-")[1])

    @property
    def text(self) -> str:
        return _ESCAPES.sub("", self.output)

    def watch(self, pids: list[int]) -> None:
        """Adds processes that must have ended at the end of the block."""
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                self._family.add(psutil.Process(pid))

    def close_terminal(self) -> None:
        """Closes the terminal, as if a user closed its window."""
        if self.terminal_fd >= 0:
            os.close(self.terminal_fd)
            self.terminal_fd = -1


def serve_command(*arguments: str) -> str:
    """The command `vllm-cli serve` with these arguments, as text for a shell."""
    return " ".join([*CLI, "serve", "--host", "127.0.0.1", *arguments])
