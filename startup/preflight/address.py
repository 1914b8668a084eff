"""Checks the address to listen on, and names the process that uses it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from server.machine.socket_holders import bound_holders, tcp_holders, unix_holders
from server.server_config import NetworkConfig
from startup.errors import PortInUseError, StartupError
from startup.preflight.report import Finding, error, info, warning
from startup.probes.listener import is_listened_on, listen

_MAX_PATH_BYTES: Final = 107
"""Longest path of a UNIX socket (unix(7))."""


def check_address(config: NetworkConfig) -> Iterator[Finding]:
    """Checks that a server can listen on the configured address; leaves no socket open."""
    if config.uds is not None:
        yield from _check_uds(Path(config.uds))
    elif config.port != 0:
        yield from _check_port(config)


def _check_port(config: NetworkConfig) -> Iterator[Finding]:
    try:
        listen(host=config.host, port=config.port, uds=None).close()
    except PortInUseError:
        holders = map(str, tcp_holders(config.port))
        who = ", ".join(holders) or "a process that is not visible from here (another user or container)"
        yield error("port", f"{_address(config)} is in use by {who}: stop it or choose another --port")
    except StartupError as err:
        yield error("port", _with_port_advice(str(err), config.port))
    else:
        for holder in bound_holders(config.port):
            yield warning(
                "port",
                f"port {config.port} is also bound by pid {holder.pid} ({holder.command}), which does not listen yet: "
                "the first process to listen gets it",
            )


def _address(config: NetworkConfig) -> str:
    return f"{config.host or '0.0.0.0'}:{config.port}"


def _with_port_advice(message: str, port: int) -> str:
    if "permission" in message and port < 1024:
        return f"{message}: choose a --port from 1024 up, lower ones need root"
    return f"{message}: choose another --host"


def _check_uds(path: Path) -> Iterator[Finding]:
    if len(bytes(path)) > _MAX_PATH_BYTES:
        yield error("uds", f"--uds {path} has {len(bytes(path))} bytes, at most {_MAX_PATH_BYTES} are possible")
    elif not path.parent.is_dir():
        yield error("uds", f"--uds {path}: there is no folder {path.parent}")
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        yield error("uds", f"--uds {path}: the folder {path.parent} cannot be written to")
    elif not path.exists():
        return
    elif not path.is_socket():
        yield error("uds", f"--uds {path} exists and is not a socket: remove it or choose another path")
    elif (holders := unix_holders(path)) or is_listened_on(path):
        who = ", ".join(map(str, holders)) or "a process that is not visible from here"
        yield error("uds", f"{path} is in use by {who}: stop it or choose another --uds")
    else:
        yield info("uds", f"{path} was left behind by a server that has ended: it is replaced")
