"""A measured server: running already, or started, frozen and stopped by the benchmark."""

import contextlib
import random
import re
import shlex
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import click

from server.exit_codes import START_FAILED
from vllm_cli.bench.config import TargetSpec
from vllm_cli.supervised_command import SupervisedCommand

_CLIENT_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT: Final = 10_000


class TargetStartError(click.ClickException):
    """The server did not start, does not answer, or rejects even the simplest completion."""

    exit_code = START_FAILED


class Target:
    """A measured server; one that runs already, which the benchmark never starts, freezes or stops."""

    is_own = False
    """True if the benchmark starts and stops it."""

    def __init__(self, spec: TargetSpec, url: str) -> None:
        self.spec = spec
        self.base_url = url.rstrip("/").removesuffix("/v1")
        """The address, without `/v1`; set by `start` for an own server."""

    def start(self) -> None:
        """Starts an own server unless it runs; returns before it is ready."""

    def close(self) -> None:
        """Stops an own server with all its descendants."""

    def pause(self) -> None:
        """Freezes an own server, so that it uses no processor time."""

    def resume(self) -> None:
        """Resumes a frozen server."""

    def ensure_alive(self) -> None:
        """Raises `CommandEndedError` if an own server is known to have exited."""

    def poll(self) -> None:
        """Checks now whether an own server has exited; otherwise that takes `EXIT_DELAY_S` or more."""


class CommandTarget(SupervisedCommand, Target):
    """A server that the benchmark starts from shell words."""

    is_own = True

    def __init__(self, spec: TargetSpec, command: str, environment: Mapping[str, str] | None = None) -> None:
        """`environment`: variables to set in addition to those of this process."""
        SupervisedCommand.__init__(self, environment)
        Target.__init__(self, spec, "")
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
    return Target(spec, spec.url or "")


def _server_words(command: str, port: int) -> list[str]:
    words = shlex.split(command)
    if any("{port}" in word for word in words):
        words = [word.replace("{port}", str(port)) for word in words]
    else:
        words += ["--port", str(port)]
    return ["env", *words] if re.match(r"[A-Za-z_]\w*=", words[0]) else words


def find_free_port(ports: Sequence[int]) -> int:
    """A port among these that no process uses."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.choice(ports)))
            port: int = probe.getsockname()[1]
            return port


def list_server_ports() -> Sequence[int]:
    """Ports below those that the kernel assigns to clients and to servers on port 0; 0 if unknown.

    The kernel cannot assign such a port to another process before the server listens. A client that polls for
    the server cannot be connected to itself there either.
    """
    with contextlib.suppress(OSError, ValueError):
        return range(_FIRST_PORT, int(_CLIENT_PORTS.read_text().split()[0])) or (0,)
    return (0,)
