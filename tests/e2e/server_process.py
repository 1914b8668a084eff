"""A server as a process of its own, for tests."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Self

import psutil

from tests.http_answer import ask
from tests.ports import free_port
from tests.process_end import end_server
from tests.waiting import wait_until

_READY_S = 240.0


class ServerProcess:
    """`vllm-cli serve` on a free port; leaving the `with` block stops it and checks that nothing is left."""

    def __init__(
        self,
        arguments: list[str],
        *,
        wait: bool = True,
        environment: Mapping[str, str] | None = None,
        launcher: tuple[str, ...] = (),
    ) -> None:
        """The launcher, if any, executes the words that follow it."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._arguments = arguments
        self._launcher = launcher
        self._wait = wait
        self._environment = {**os.environ, **(environment or {})}
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [
                *self._launcher,
                sys.executable,
                "-m",
                "vllm_cli",
                "serve",
                "--host",
                "127.0.0.1",
                "--port",
                str(self.port),
                *self._arguments,
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=self._environment,
        )
        if self._wait:
            try:
                self.wait_ready()
            except BaseException:
                self._end()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = self._end()
        assert not left, f"left behind: {left}"

    @property
    def log(self) -> str:
        """Everything the server wrote so far."""
        fd = self._log.fileno()  # read where it stands: the server writes wherever the file it shares is wound to
        return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")

    def wait_ready(self) -> None:
        """Waits for /health 200; fails with the log when the process ends first."""
        deadline = time.monotonic() + _READY_S
        while self.health() != 200:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def wait_logged(self, words: str) -> None:
        """Waits until the server has written the words."""
        wait_until(lambda: words in self.log)

    def health(self) -> int:
        """The status of /health; 0 while nobody answers."""
        return ask(f"{self.url}/health").status

    def wait_listening(self) -> None:
        """Waits until anything at all answers."""
        wait_until(self.health)

    def wait_unready(self) -> None:
        """Waits until probes are told that no request is taken."""
        wait_until(lambda: self.health() == 503)

    def wait_load(self, num_requests: int) -> None:
        """Waits until so many requests are being answered."""
        wait_until(lambda: ask(f"{self.url}/load").json["server_load"] == num_requests)

    def phase(self) -> str | None:
        """What the server says it is at; None where it says nothing."""
        answer = ask(f"{self.url}/health")
        return None if answer.status in (0, 200) else answer.json.get("phase")

    def complete(self, *, max_tokens: int) -> int:
        """The status of a completion."""
        body = {"prompt": "Once", "max_tokens": max_tokens, "ignore_eos": True}
        return ask(f"{self.url}/v1/completions", body).status

    def family(self) -> list[psutil.Process]:
        """The server's process and all below it."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def terminate(self, signal_number: int = signal.SIGTERM, *, timeout_s: float = 120.0) -> int:
        """Sends a signal and returns the exit code."""
        os.kill(self.process.pid, signal_number)
        return self.process.wait(timeout_s)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples, or of those with the labels."""
        lines = ask(f"{self.url}/metrics").body.decode().splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        samples = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        values = [float(line.rpartition(" ")[2]) for line in samples if all(word in line for word in wanted)]
        assert values, f"no metric {name}"
        return sum(values)

    def _end(self) -> list[psutil.Process]:
        family = self.family() if self.process.poll() is None else []
        left = end_server(self.process, family)
        self._log.close()
        return left
