"""A measured server: running already, or started, frozen and stopped by the benchmark."""

import re
import shlex
from collections.abc import Mapping
from typing import Protocol

from vllm_cli.bench.config import TargetSpec
from vllm_cli.bench.ports import find_free_port, list_server_ports
from vllm_cli.supervised_command import SupervisedCommand


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
        """Raises `CommandEndedError` if a started server is known to have exited."""

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
