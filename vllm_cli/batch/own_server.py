"""The server that `run-batch` starts on a private socket; it stops with the batch, also after a SIGKILL."""

import contextlib
import errno
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Final

from envs import foreign
from envs.registry import env
from startup.serve_words import ServeWords
from vllm_cli.client.readiness import Readiness
from vllm_cli.client.server_address import ServerAddress
from vllm_cli.client.waiting import WaitOptions, wait_for_server
from vllm_cli.errors import ConnectionFailedError, InputError
from vllm_cli.flags.secret_flags import secrets_as_variables
from vllm_cli.serve.engine_choice import keyless_flags
from vllm_cli.supervisor import start_supervisor

_STOP_GRACE_S: Final = 20.0
_MAX_PATH_BYTES: Final = 100
"""A little below the longest address of a Unix socket (unix(7))."""
_PREFIX: Final = "vllm-cli-batch-"
_SOCKET: Final = "server.sock"
_READY_TIMEOUT_S: Final = 7 * 24 * 3600.0
"""A week, in effect no limit: the server has its own start-up timeout."""
_SERVE: Final = ("-m", "vllm_cli", "serve")
_EMBEDDED: Final = "embedded"
_DEFAULTS: Final = (
    "--engine", _EMBEDDED, "--log-level", "WARNING", "--uvicorn-log-level", "warning", "--disable-uvicorn-access-log",
    "--shutdown-timeout", "2",
)  # fmt: skip


class ServerStartError(Exception):
    """The server exited before it was ready; its own log has the reason."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"the server ended with exit code {exit_code} before it was ready")
        self.exit_code = exit_code


class OwnServer:
    """`vllm-cli serve` below a supervisor, which stops it when this process exits, also by SIGKILL."""

    def __init__(self, serve_words: tuple[str, ...], socket_path: Path) -> None:
        self.address = ServerAddress(uds=str(socket_path))
        # Flags come first: a list flag among the user's takes every word that follows.
        given, secrets = secrets_as_variables(serve_words)
        flags = ("--uds", str(socket_path), *_engine_flags(serve_words), *keyless_flags(serve_words))
        words = (sys.executable, *_SERVE, *flags, *given)
        environment = {**foreign.snapshot(), env.VLLM_API_KEY.name: "", **secrets}
        self._supervisor = start_supervisor(words, grace_s=_STOP_GRACE_S, stdout=subprocess.DEVNULL, env=environment)

    def wait_ready(self, on_poll: Callable[[Readiness, float], None]) -> None:
        """Raises ServerStartError if the server exits before it is ready."""
        options = WaitOptions(
            address=self.address, path="/health", timeout_s=_READY_TIMEOUT_S, interval_s=0.05, pid=self._supervisor.pid
        )
        if wait_for_server(options, on_poll).ending != "ready":
            raise ServerStartError(self._supervisor.wait())

    def ensure_alive(self) -> None:
        """Raises ConnectionFailedError if the server has exited."""
        if self._supervisor.poll() is not None:
            raise ConnectionFailedError(f"The server ended with exit code {self._supervisor.returncode}.")

    def close(self) -> None:
        """Stops the server and waits until all its processes have exited."""
        with contextlib.suppress(BrokenPipeError):
            self._supervisor.communicate()


@contextlib.contextmanager
def start_own_server(serve_words: tuple[str, ...]) -> Iterator[OwnServer]:
    """Starts a server; stops it at the end of the block."""
    parent = _socket_folder()
    _remove_stale_sockets(Path(parent))
    with (
        TemporaryDirectory(prefix=_PREFIX, dir=parent) as folder,
        contextlib.closing(OwnServer(serve_words, Path(folder, _SOCKET))) as server,
    ):
        yield server


def _engine_flags(serve_words: tuple[str, ...]) -> tuple[str, ...]:
    """Flags of the embedded engine, with fewer log lines; none if the user chose another engine."""
    engine = ServeWords(serve_words).own.get("--engine") or env.VCLI_ENGINE.raw
    return _DEFAULTS if engine in (None, _EMBEDDED) else ()


def _socket_folder() -> str:
    for folder in (gettempdir(), "/tmp"):
        if len(f"{folder}/{_PREFIX}12345678/{_SOCKET}".encode()) <= _MAX_PATH_BYTES:
            return folder
    raise InputError(f"The path of TMPDIR, {gettempdir()}, is too long for a socket in it.")


def _remove_stale_sockets(parent: Path) -> None:
    """Removes the sockets of killed batches, on which no process listens."""
    for path in parent.glob(f"{_PREFIX}*/{_SOCKET}"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
                path.unlink()
                path.parent.rmdir()
