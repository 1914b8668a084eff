"""`vllm-cli serve` as a process."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Self

import psutil

from tests.cli import CLI
from tests.http_answer import ask
from tests.ports import free_port
from tests.processes import end_server
from tests.waiting import wait_until

if TYPE_CHECKING:
    from openai import OpenAI

_READY_S = 240.0


class ServerProcess:
    """`vllm-cli serve` on a free port; the end of the `with` block stops it and checks for leftovers."""

    def __init__(
        self,
        arguments: list[str],
        *,
        wait: bool = True,
        environment: Mapping[str, str] | None = None,
        launcher: tuple[str, ...] = (),
    ) -> None:
        """`launcher` is a command that executes the arguments that follow it."""
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
            [*self._launcher, *CLI, "serve", "--host", "127.0.0.1", "--port", str(self.port), *self._arguments],
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

    def __exit__(self, *_: object) -> None:
        left = self._end()
        assert not left, f"left behind: {left}"

    @property
    def log(self) -> str:
        """The server's output so far."""
        fd = self._log.fileno()  # no seek: the server shares the file offset
        return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")

    def wait_ready(self) -> None:
        """Waits for /health 200; fails with the log if the process exits first."""
        deadline = time.monotonic() + _READY_S
        while self.health() != 200:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def wait_logged(self, text: str) -> None:
        """Waits until the log contains the text."""
        wait_until(lambda: text in self.log)

    def health(self) -> int:
        """The status of /health; 0 without a response."""
        return ask(f"{self.url}/health").status

    def wait_listening(self) -> None:
        """Waits for the first response to a probe."""
        wait_until(self.health)

    def wait_unready(self) -> None:
        """Waits until /health is 503."""
        wait_until(lambda: self.health() == 503)

    def wait_load(self, num_requests: int) -> None:
        """Waits until `/load` reports this number of requests."""
        wait_until(lambda: ask(f"{self.url}/load").json["server_load"] == num_requests)

    def phase(self) -> str | None:
        """The phase in the body of /health; None once the server is ready."""
        answer = ask(f"{self.url}/health")
        return None if answer.status in (0, 200) else answer.json.get("phase")

    def openai(self) -> "OpenAI":
        """The `openai` client, connected to this server; a context manager."""
        from openai import OpenAI

        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def complete(self, *, max_tokens: int) -> int:
        """Requests a completion and returns the status."""
        body = {"prompt": "Once", "max_tokens": max_tokens, "ignore_eos": True}
        return ask(f"{self.url}/v1/completions", body).status

    def family(self) -> list[psutil.Process]:
        """The process tree: the server and all its descendants."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def terminate(self, signal_number: int = signal.SIGTERM, *, timeout_s: float = 120.0) -> int:
        """Sends a signal and returns the exit code."""
        os.kill(self.process.pid, signal_number)
        return self.process.wait(timeout_s)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
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
