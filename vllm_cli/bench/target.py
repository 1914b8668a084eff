"""The servers under test: one that runs already, or one that the benchmark starts, freezes and stops."""

import contextlib
import random
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vllm_cli import supervisor
from vllm_cli.bench.config import TargetSpec
from vllm_cli.bench.errors import TargetDiedError

STOP_GRACE_S = 20.0
"""How long a server may take to end after SIGTERM before it is killed."""
_NUM_LOG_LINES = 20
_CLIENT_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT = 10_000


class Target(Protocol):
    """A server under test."""

    spec: TargetSpec
    base_url: str
    """Where it listens, without `/v1`; known once started."""
    is_own: bool
    """True if the benchmark starts and stops it."""

    def start(self) -> None:
        """Start the server if it is ours and does not run; it is not ready yet when this returns."""

    def close(self) -> None:
        """Stop the server if it is ours, and everything that it started."""

    def pause(self) -> None:
        """Freeze the server if it is ours, so that it takes no processor time."""

    def resume(self) -> None:
        """Let a frozen server go on."""

    def ensure_alive(self) -> None:
        """Raise `TargetDiedError` if the server is ours and is known to have ended."""

    def look(self) -> None:
        """Get to know whether a server of ours has ended; without it, that may take `NOTICE_S` and more."""


class RunningTarget:
    """A server that somebody else started; it is never stopped or frozen."""

    is_own = False

    def __init__(self, spec: TargetSpec, url: str) -> None:
        self.spec = spec
        self.base_url = url.rstrip("/").removesuffix("/v1")

    def start(self) -> None:
        """Nothing to do: it runs."""

    close = pause = resume = ensure_alive = look = start


class CommandTarget:
    """A server that the benchmark starts from shell words, below a supervisor that survives the benchmark's death."""

    is_own = True

    def __init__(self, spec: TargetSpec, command: str) -> None:
        self.spec = spec
        self.base_url = ""
        self._command = command
        self._words: list[str] = []
        self._warden: subprocess.Popen[bytes] | None = None
        self._log_path: Path | None = None

    def start(self) -> None:
        """Start the command unless it runs; every start has a port of its own."""
        if self._warden is not None:
            return
        port = _find_free_port()
        self.base_url = f"http://127.0.0.1:{port}"
        self._words = _server_words(self._command, port)
        with tempfile.NamedTemporaryFile(prefix="vllm-cli-bench-", suffix=".log", delete=False) as log:
            self._log_path = Path(log.name)
            self._warden = subprocess.Popen(
                [sys.executable, "-I", supervisor.__file__, str(STOP_GRACE_S), *self._words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def close(self) -> None:
        """Stop the server and wait until it and all its descendants are gone."""
        if self._warden is None:
            return
        process, self._warden = self._warden, None
        with contextlib.suppress(BrokenPipeError):
            process.communicate()
        if self._log_path is not None:
            self._log_path.unlink(missing_ok=True)

    def pause(self) -> None:
        self._order(b"pause\n")

    def resume(self) -> None:
        self._order(b"resume\n")

    def look(self) -> None:
        self._order(b"look\n")

    def ensure_alive(self) -> None:
        if self._warden is not None and self._warden.poll() is not None:
            raise TargetDiedError(f"{self.describe_end()}\n{self.log_tail}".rstrip())

    def describe_end(self) -> str:
        """One line on how the command ended."""
        status = self._warden.returncode if self._warden else None
        words = shlex.join(self._words)
        if status == supervisor.CANNOT_RUN:
            return f"Cannot run: {words}"
        return f"The server ended with exit status {status}: {words}"

    @property
    def log_tail(self) -> str:
        """The last lines that the server wrote."""
        if self._log_path is None or not self._log_path.exists():
            return ""
        lines = self._log_path.read_text(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-_NUM_LOG_LINES:])

    @property
    def root_pid(self) -> int:
        """The process below which everything is that the server consists of; not part of it itself.

        Raises:
            TargetDiedError: the server was not started, or has been stopped.
        """
        if self._warden is None:
            raise TargetDiedError("The server does not run.")
        return self._warden.pid

    def _order(self, order: bytes) -> None:
        process = self._warden
        if process is None or process.stdin is None or process.stdout is None:
            return
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(order)
            process.stdin.flush()
            if process.stdout.readline():
                return
        process.wait()  # the server has ended, and with it the supervisor


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


def _find_free_port() -> int:
    """Below those that the kernel hands out meanwhile, to servers on port 0 and to clients, even its own."""
    ports = _server_ports()
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.choice(ports)))
            port: int = probe.getsockname()[1]
            return port


def _server_ports() -> Sequence[int]:
    """0, which is any, where nothing is known or nothing is left."""
    with contextlib.suppress(OSError, ValueError):
        return range(_FIRST_PORT, int(_CLIENT_PORTS.read_text().split()[0])) or (0,)
    return (0,)
