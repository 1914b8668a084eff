"""A server as a process of its own, for tests."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from types import TracebackType
from typing import IO, Self

import psutil

from tests.ports import free_port
from tests.waiting import wait_until

_READY_S = 240.0
_ANSWER_S = 60.0
_GONE_S = 60.0


class ServerProcess:
    """`vllm-cli serve` on a free port; leaving the `with` block stops it and checks that nothing is left."""

    def __init__(
        self,
        arguments: list[str],
        *,
        wait: bool = True,
        environment: dict[str, str] | None = None,
        launcher: tuple[str, ...] = (),
    ) -> None:
        """The launcher, if any, executes the words that follow it."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._arguments = arguments
        self._launcher = launcher
        self._wait = wait
        self._environment = os.environ | (environment or {})
        self._log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the server
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
        self._log.seek(0)
        return self._log.read()

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
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=_ANSWER_S) as response:
                return int(response.status)
        except urllib.error.HTTPError as err:
            return err.code
        except OSError:
            return 0

    def wait_listening(self) -> None:
        """Waits until anything at all answers."""
        wait_until(self.health)

    def wait_unready(self) -> None:
        """Waits until probes are told that no request is taken."""
        wait_until(lambda: self.health() == 503)

    def wait_load(self, num_requests: int) -> None:
        """Waits until so many requests are being answered."""

        def load() -> int:
            with urllib.request.urlopen(f"{self.url}/load", timeout=_ANSWER_S) as response:
                return int(json.load(response)["server_load"])

        wait_until(lambda: load() == num_requests)

    def phase(self) -> str | None:
        """What the server says it is at; None where it says nothing."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=_ANSWER_S):
                return None
        except urllib.error.HTTPError as err:
            phase: str | None = json.loads(err.read()).get("phase")
            return phase
        except OSError:
            return None

    def complete(self, *, max_tokens: int) -> int:
        """The status of a completion."""
        body = json.dumps({"prompt": "Once", "max_tokens": max_tokens, "ignore_eos": True}).encode()
        request = urllib.request.Request(f"{self.url}/v1/completions", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as response:
                return int(response.status)
        except urllib.error.HTTPError as err:
            return err.code

    def family(self) -> list[psutil.Process]:
        """The server's process and all below it."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def engine(self) -> psutil.Process:
        """The engine process: the one that holds the model."""
        return max(self.family()[1:], key=lambda p: p.memory_info().rss)

    def terminate(self, signal_number: int = signal.SIGTERM, *, timeout_s: float = 120.0) -> int:
        """Sends a signal and returns the exit code."""
        os.kill(self.process.pid, signal_number)
        return self.process.wait(timeout_s)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples, or of those with the labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=_ANSWER_S) as response:
            lines = response.read().decode().splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        samples = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        values = [float(line.rpartition(" ")[2]) for line in samples if all(word in line for word in wanted)]
        assert values, f"no metric {name}"
        return sum(values)

    def _end(self) -> list[psutil.Process]:
        family = self.family() if self.process.poll() is None else []
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_GONE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        _, left = psutil.wait_procs(family, timeout=_GONE_S)
        for process in left:
            process.kill()
        self._log.close()
        return left
