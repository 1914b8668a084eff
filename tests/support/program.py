"""A server that a test starts, with its output. The test fails if it leaves a process behind."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final, Self

import psutil

from base.server_settings import SAME_SIGNAL_S
from tests.support.http_client import Answer, ask
from tests.support.waiting import GONE_S, end_server, running

READY_S: Final = 240.0


class Program:
    """A command with its descendants. The end of the `with` block stops them and checks for leftovers."""

    poll_s = 0.05
    gone_s = GONE_S
    """How long the other processes may run after the first process has exited."""
    leaves_nothing = True
    """False for foreign programs. Their leftovers are killed, and the test does not fail."""

    def __init__(
        self,
        command: Sequence[object],
        environment: Mapping[str, str],
        *,
        is_awaited: bool = False,
        log_path: Path | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            command: the arguments of the command.
            environment: all variables of the command.
            is_awaited: whether the `with` block begins only once the program is ready.
            log_path: the file for the output. Without it, the file has no name.
            options: the options of `subprocess.Popen`.
        """
        self.command = [*map(str, command)]
        self.variables = dict(environment)
        self.log_path = log_path
        self._is_awaited = is_awaited
        self._options = options
        self._output: IO[bytes] | None = None
        self._last_log = ""
        self._seen: set[psutil.Process] = set()
        self.process: subprocess.Popen[bytes]
        self.root: psutil.Process

    def __enter__(self) -> Self:
        self.start()
        if self._is_awaited:
            try:
                self.wait_ready()
            except BaseException:
                self.stop()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        left = self.stop()
        assert not left or not self.leaves_nothing, f"left behind: {left}"

    def start(self) -> None:
        """Starts the process, or starts it again after its end."""
        if self._output:
            self._output.close()
        self._output = self.log_path.open("w+b") if self.log_path else tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=self.variables,
            **self._options,
        )
        self.root = psutil.Process(self.process.pid)

    @property
    def log(self) -> str:
        if self._output is None or self._output.closed:
            return self._last_log
        fd = self._output.fileno()  # no seek: the processes share the file offset
        return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")

    def wait(self, is_true: Callable[[], object], timeout_s: float = READY_S) -> None:
        """Polls the condition. Fails with the log if the process exits before the condition is true."""
        deadline = time.monotonic() + timeout_s
        while True:
            code = self.process.poll()
            if is_true():
                return
            assert code is None, f"it exited with {code}\n{self.log[-8000:]}"
            assert time.monotonic() < deadline, self.log[-8000:]
            time.sleep(self.poll_s)

    def wait_ready(self) -> Any:
        raise NotImplementedError

    def wait_logged(self, text: str) -> None:
        self.wait(lambda: text in self.log)

    def roots(self) -> list[psutil.Process]:
        """The first processes of the program. Their descendants belong to the program, too."""
        return [self.root]

    def family(self) -> list[psutil.Process]:
        """The present process tree. All its processes must have exited at the end of the test."""
        found: list[psutil.Process] = []
        for process in self.roots():
            with suppress(psutil.NoSuchProcess):
                found += [process, *process.children(recursive=True)]
        self._seen.update(found)
        return found

    def children_with(self, argument: str) -> list[psutil.Process]:
        """The first process's running children with this argument on their command line."""
        found = []
        for process in self.root.children():
            with suppress(psutil.NoSuchProcess):  # it has ended since
                found += [process] if argument in process.cmdline() else []
        return found

    def wait_all_gone(self) -> None:
        """Waits until all processes that `family` has ever returned have exited."""
        deadline = time.monotonic() + self.gone_s
        while left := running(self._seen):
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.01)

    def terminate(self, signal_number: int = signal.SIGTERM, *, timeout_s: float = 120.0) -> int:
        self.family()
        os.kill(self.process.pid, signal_number)
        return self.process.wait(timeout_s)

    def signal_again(self, signal_number: int = signal.SIGTERM) -> None:
        """Sends a second signal to a draining server, so late that the server sees two signals."""
        time.sleep(SAME_SIGNAL_S + 0.05)
        os.kill(self.process.pid, signal_number)

    def signal_all(self, signal_number: int = signal.SIGTERM) -> None:
        """Sends a signal to the main process, then to all others, as systemd does by default."""
        for process in self.family():
            with suppress(psutil.NoSuchProcess):  # the first one has ended it, or it was a helper of the start
                process.send_signal(signal_number)

    def stop(self) -> list[psutil.Process]:
        """Ends all processes of the program. Returns the processes that had to be killed."""
        self.family()
        left = end_server(self.process, self._seen, left_s=self.gone_s)
        self._last_log = self.log
        if self._output:
            self._output.close()
        return left


class Server(Program):
    """A program that serves HTTP at a port of 127.0.0.1."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, body: object = None, **options: Any) -> Answer:
        return ask(self.url + path, body, **options)

    def health(self) -> int:
        """The status of /health. 0 if there is no response."""
        return self.ask("/health").status

    def wait_status(self, status: int) -> Self:
        self.wait(lambda: self.health() == status)
        return self

    def wait_ready(self) -> Self:
        """Waits until /health answers 200."""
        return self.wait_status(200)
