"""Runs a command. Its processes end when this process ends, even if SIGKILL ends this process."""

import contextlib
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import click

from envs.environment import snapshot
from envs.redaction import hide_in_command
from vllm_cli.supervisor import CANNOT_RUN, start_supervisor

STOP_GRACE_S = 20.0
"""Seconds from SIGTERM until the command is killed."""
_NUM_LOG_LINES = 20


def last_lines(log: Path) -> str:
    """The end of a log, indented. Empty if there is no such file."""
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-_NUM_LOG_LINES:])
    return ""


class CommandEndedError(click.ClickException):
    """The command has exited."""

    exit_code = 1


class SupervisedCommand:
    """A command with its descendants and its output. Its supervisor process outlives this process."""

    log_path: Path
    """The file with the output, from `run` until `close`."""
    begin_ns: int
    """When `run` has executed the command, on the monotonic clock. 0 if the command cannot be executed."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """`environment`: variables to set in addition to those of this process."""
        self._environment = {**snapshot(), **(environment or {})}
        self._arguments: Sequence[str] = ()
        self._supervisor: subprocess.Popen[bytes] | None = None

    def run(self, arguments: Sequence[str]) -> None:
        """Returns when the command has been executed."""
        self._arguments = arguments
        with tempfile.NamedTemporaryFile(prefix="vllm-cli-", suffix=".log", delete=False) as log:
            self.log_path = Path(log.name)
            self._supervisor = start_supervisor(
                arguments, grace_s=STOP_GRACE_S, stdout=subprocess.PIPE, stderr=log.file, env=self._environment
            )
        assert self._supervisor.stdout is not None
        self.begin_ns = int(self._supervisor.stdout.readline() or 0)

    def close(self) -> None:
        """Stops the command and waits until it and all its descendants have exited."""
        if self._supervisor is None:
            return
        process, self._supervisor = self._supervisor, None
        with contextlib.suppress(BrokenPipeError):
            process.communicate()
        self.log_path.unlink(missing_ok=True)

    def ensure_alive(self) -> None:
        """Raises `CommandEndedError` if the command is known to have exited."""
        if self._supervisor is not None and (status := self._supervisor.poll()) is not None:
            end = "Cannot run" if status == CANNOT_RUN else f"The server ended with exit status {status}"
            raise CommandEndedError(f"{end}: {hide_in_command(shlex.join(self._arguments))}\n{self.log_tail}".rstrip())

    @property
    def log_tail(self) -> str:
        return last_lines(self.log_path)

    @property
    def root_pid(self) -> int:
        """The id of the running command's supervisor. All processes of the command are its descendants."""
        assert self._supervisor is not None
        return self._supervisor.pid

    def send(self, command: Literal["pause", "resume"]) -> None:
        """Sends a command to the supervisor. Returns once it is done, or once the supervisor has exited.

        `pause` freezes the server, so that it uses no processor time.
        """
        process = self._supervisor
        if process is None or process.stdin is None or process.stdout is None:
            return
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{command}\n".encode())
            process.stdin.flush()
            if process.stdout.readline():
                return
        process.wait()  # without an echo the command has exited, and the supervisor soon exits, too
