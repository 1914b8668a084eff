"""A measured server: running already, or started, frozen and stopped by the benchmark."""

import contextlib
import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from envs import foreign
from envs.redaction import hide_in_command
from vllm_cli.bench.config import TargetSpec
from vllm_cli.bench.errors import TargetDiedError
from vllm_cli.bench.ports import find_free_port, list_server_ports
from vllm_cli.supervisor import CANNOT_RUN, start_supervisor

STOP_GRACE_S = 20.0
"""Time that a command has to exit after SIGTERM; then it is killed."""
_NUM_LOG_LINES = 20


class Target(Protocol):
    """A measured server."""

    spec: TargetSpec
    base_url: str
    """The address, without `/v1`; set by `start`."""
    is_own: bool
    """True if the benchmark starts and stops it."""

    def start(self) -> None:
        """Starts the server unless it runs; returns before it is ready."""

    def close(self) -> None:
        """Stops a started server with all its descendants."""

    def pause(self) -> None:
        """Freezes a started server, so that it uses no processor time."""

    def resume(self) -> None:
        """Resumes a frozen server."""

    def ensure_alive(self) -> None:
        """Raises `TargetDiedError` if a started server is known to have exited."""

    def poll(self) -> None:
        """Checks now whether a started server has exited; otherwise that takes `EXIT_DELAY_S` or more."""


class RunningTarget:
    """A server that the benchmark did not start; it is never stopped or frozen."""

    is_own = False

    def __init__(self, spec: TargetSpec, url: str) -> None:
        self.spec = spec
        self.base_url = url.rstrip("/").removesuffix("/v1")

    def start(self) -> None:
        """Does nothing: the server runs."""

    close = pause = resume = ensure_alive = poll = start


class SupervisedCommand:
    """A command with all its descendants, and its output; its supervisor outlives a killed benchmark."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """`environment`: variables to set in addition to those of this process."""
        self._environment = {**foreign.snapshot(), **(environment or {})}
        self._words: Sequence[str] = ()
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._log_path: Path | None = None

    def run(self, words: Sequence[str]) -> None:
        """Starts the command unless one runs."""
        if self._supervisor is not None:
            return
        self._words = words
        with tempfile.NamedTemporaryFile(prefix="vllm-cli-bench-", suffix=".log", delete=False) as log:
            self._log_path = Path(log.name)
            self._supervisor = start_supervisor(
                words, grace_s=STOP_GRACE_S, stdout=subprocess.PIPE, stderr=log, env=self._environment
            )

    def close(self) -> None:
        """Stops the command and waits until it and all its descendants have exited."""
        if self._supervisor is None:
            return
        process, self._supervisor = self._supervisor, None
        with contextlib.suppress(BrokenPipeError):
            process.communicate()
        if self._log_path is not None:
            self._log_path.unlink(missing_ok=True)

    def ensure_alive(self) -> None:
        """Raises `TargetDiedError` if the command is known to have exited."""
        if self._supervisor is not None and self._supervisor.poll() is not None:
            raise TargetDiedError(f"{self.describe_end()}\n{self.log_tail}".rstrip())

    def describe_end(self) -> str:
        """One line with the command and its exit status."""
        status = self._supervisor.returncode if self._supervisor else None
        words = hide_in_command(shlex.join(self._words))
        if status == CANNOT_RUN:
            return f"Cannot run: {words}"
        return f"The server ended with exit status {status}: {words}"

    @property
    def log_tail(self) -> str:
        """The last lines that the command wrote."""
        if self._log_path is None or not self._log_path.exists():
            return ""
        lines = self._log_path.read_text(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-_NUM_LOG_LINES:])

    @property
    def root_pid(self) -> int:
        """The supervisor: all processes of the command are its descendants.

        Raises:
            TargetDiedError: the command was not started, or has been stopped.
        """
        if self._supervisor is None:
            raise TargetDiedError("The server does not run.")
        return self._supervisor.pid

    def send(self, command: bytes) -> None:
        """Sends a command to the supervisor and waits until it is done or the process has exited."""
        process = self._supervisor
        if process is None or process.stdin is None or process.stdout is None:
            return
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(command)
            process.stdin.flush()
            if process.stdout.readline():
                return
        process.wait()  # without an echo the process has exited, and the supervisor exits after it


class CommandTarget(SupervisedCommand):
    """A server that the benchmark starts from shell words."""

    is_own = True

    def __init__(self, spec: TargetSpec, command: str, environment: Mapping[str, str] | None = None) -> None:
        """`environment`: variables to set in addition to those of this process."""
        super().__init__(environment)
        self.spec = spec
        self.base_url = ""
        self._command = command

    def start(self) -> None:
        """Starts the command unless it runs; every start has a port of its own."""
        if self._supervisor is None:
            port = find_free_port(list_server_ports())
            self.base_url = f"http://127.0.0.1:{port}"
            self.run(_server_words(self._command, port))

    def pause(self) -> None:
        self.send(b"pause\n")

    def resume(self) -> None:
        self.send(b"resume\n")

    def poll(self) -> None:
        self.send(b"poll\n")


def build_target(spec: TargetSpec) -> Target:
    """The target that a specification describes."""
    if spec.command is not None:
        return CommandTarget(spec, spec.command)
    return RunningTarget(spec, spec.url or "")


def _server_words(command: str, port: int) -> list[str]:
    words = shlex.split(command)
    if any("{port}" in word for word in words):
        words = [word.replace("{port}", str(port)) for word in words]
    else:
        words += ["--port", str(port)]
    return ["env", *words] if re.match(r"[A-Za-z_]\w*=", words[0]) else words
