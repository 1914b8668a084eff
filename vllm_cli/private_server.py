"""Runs `vllm-cli serve` on a private socket, without keys, TLS or port, for `bake` and `run`."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from tempfile import gettempdir
from typing import Final, NamedTuple

from envs.registry import env
from startup.arguments.errors import InputError
from startup.arguments.read_arguments import choose_engine
from startup.arguments.screening import secrets_as_variables, without_flags
from startup.arguments.table import split_flags
from startup.errors import StartupError
from startup.settings.config import flags_with_role
from startup.settings.serve_arguments import LauncherLine, join
from startup.storage.temp_folder import own_folder
from vllm_cli.client.server_address import ServerAddress
from vllm_cli.client.waiting import Readiness, WaitOptions, wait_for_server
from vllm_cli.supervised_command import SupervisedCommand
from vllm_cli.terminal import Reporter

_POLL_S: Final = 0.05
_MAX_PATH_BYTES: Final = 100
"""A little less than the longest path of a Unix socket (unix(7))."""
_SOCKET: Final = "server.sock"


class PrivateServer(NamedTuple):
    """A server that stops with this process. `start_private_server` creates it."""

    command: SupervisedCommand
    address: ServerAddress

    def wait_ready(self, timeout_s: float, reporter: Reporter) -> None:
        """Shows phases until the server is ready. Otherwise raises StartupError with the end of its log."""
        options = WaitOptions(
            address=self.address, path="/health", timeout_s=timeout_s, interval_s=_POLL_S, pid=self.command.root_pid
        )

        def show(polled: Readiness, waited_s: float) -> None:
            phase = (polled.phase or "starting").replace("_", " ")
            reporter.update(f"{waited_s:6.1f} s  {phase}{polled.describe_rest()}", phase)

        result = wait_for_server(options, show)
        if result.ending != "ready":
            reason = "not ready in time" if result.ending == "timed out" else result.last.reason
            raise StartupError(f"the start failed ({reason})\n{self.command.log_tail}")


@contextlib.contextmanager
def start_private_server(arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[PrivateServer]:
    """Starts a server. After the block, stops it and waits until all its processes have exited.

    `arguments` follow `serve`. `environment` has variables in addition to those of this process.
    """
    kept = without_flags(split_flags(arguments), flags_with_role("address", "keys", "tls"))
    parts, secrets = secrets_as_variables(kept)
    given = join(parts)
    variables = {**environment, env.VLLM_API_KEY.name: "", **secrets}
    with (
        own_folder(_socket_folder()) as folder,
        contextlib.closing(SupervisedCommand(variables)) as command,
    ):
        path = str(folder / _SOCKET)
        model = given[:1] if given and not given[0].startswith("-") else []  # the argument that vLLM expects first
        # Then our flags: after a list flag of the user, all arguments would belong to the list.
        own = ["--uds", path, *_overrides(arguments)]
        command.run([sys.executable, "-m", "vllm_cli", "serve", *model, *own, *given[len(model) :]])
        yield PrivateServer(command, ServerAddress(uds=path))


def _overrides(arguments: Sequence[str]) -> Iterator[str]:
    """Yields flags that turn off the keys and TLS of a --config file. They precede the user's arguments."""
    yield "--api-key="
    if choose_engine(LauncherLine(arguments)) == "embedded":
        yield from ("--api-key-file=", "--ssl-ca-certs=", "--ssl-ciphers=", "--ssl-cert-reqs=0")
        yield "--no-enable-ssl-refresh"
    # Without a file, even empty flags would delay vLLM's listening.
    if any(part.name == "--config" for part in split_flags(arguments)):
        yield from ("--ssl-keyfile=", "--ssl-certfile=")


def _socket_folder() -> str:
    for folder in (gettempdir(), "/tmp"):
        if len(f"{folder}/vcli-12345678/{_SOCKET}".encode()) <= _MAX_PATH_BYTES:
            return folder
    raise InputError(f"The path of TMPDIR, {gettempdir()}, is too long for a socket in it.")
