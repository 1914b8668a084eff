"""Measured servers, which a benchmark starts, freezes and stops."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import click

from base.exit_codes import START_FAILED
from base.machine.server_ports import find_free_port, list_server_ports
from envs.redaction import hide_in_command
from vllm_cli.supervised_command import SupervisedCommand


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """A server to measure."""

    name: str
    command: str
    """A command as for a shell. A free port replaces `{port}`, or is appended as `--port N`."""
    model: str | None = None
    """The name of the model to request. None means the first model in the server's list."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """The servers to measure, and how completions are requested."""

    targets: tuple[TargetSpec, ...]
    """The first target is side A, with which the others are compared."""
    num_rounds: int
    endpoint: str = "completions"
    """`completions` or `chat`."""
    api_key: str | None = None
    ready_timeout_s: float = 600.0

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.endpoint == "chat" else "/v1/completions"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as fields of the result file, without commands and keys."""
        return {name: value for name, value in asdict(self).items() if name not in ("targets", "api_key")}


class TargetStartError(click.ClickException):
    """The server did not start, or rejects the simplest completion."""

    exit_code = START_FAILED


class Target(SupervisedCommand):
    """A measured server."""

    base_url: str
    """The address without `/v1`, from `start` on."""

    def __init__(self, spec: TargetSpec, environment: Mapping[str, str] | None = None) -> None:
        """`environment`: additional variables."""
        super().__init__(environment)
        self.spec = spec

    def start(self) -> None:
        """Starts the command on a free port if it does not run. Returns before the server is ready."""
        if self._supervisor is None:
            port = find_free_port(list_server_ports())
            self.base_url = f"http://127.0.0.1:{port}"
            self.run(_server_words(self.spec.command, port))


def describe(spec: TargetSpec) -> str:
    """The command, without secrets."""
    return hide_in_command(spec.command)


def _server_words(command: str, port: int) -> list[str]:
    words = shlex.split(command)
    if any("{port}" in word for word in words):
        words = [word.replace("{port}", str(port)) for word in words]
    else:
        words += ["--port", str(port)]
    return ["env", *words] if re.match(r"[A-Za-z_]\w*=", words[0]) else words
