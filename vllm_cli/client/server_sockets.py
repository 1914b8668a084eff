"""Where a running server listens: from the kernel's list of its sockets, else from its command line."""

import contextlib
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vllm_cli.client.server_address import ServerAddress, reachable_host
from vllm_cli.flags.arguments import Arguments

Socket = tuple[str, int] | str
"""Host and port, or the path of a UNIX domain socket."""


def has_own_network(process: Any) -> bool:
    """Whether the process has another network namespace, as in a container; False if unknown."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    return False


def find_socket(processes: list[Any], arguments: Arguments) -> Socket | None:
    """Where a server and its children listen; for other users' servers, where their flags say."""
    import psutil

    uds = arguments.last_value("--uds")
    try:
        found = _listening(processes)
        if uds is not None and found:
            return str((Path(processes[0].cwd()) / uds).resolve())
        return found[0] if found else None
    except psutil.AccessDenied:
        port = arguments.last_value("--port") or "8000"
        return uds or ((arguments.last_value("--host") or "0.0.0.0", int(port)) if port.isdecimal() else None)


def address_of(listening: Socket, *, is_tls: bool) -> ServerAddress:
    """The address to connect to a server that listens there."""
    context = None
    if is_tls:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the process is known; nothing secret is sent
    if isinstance(listening, str):
        return ServerAddress(uds=listening, tls=context)
    return ServerAddress(host=reachable_host(listening[0]), port=listening[1], tls=context)


def _listening(processes: Iterable[Any]) -> list[Socket]:
    """Where the processes listen: addresses first, then UNIX sockets with a file."""
    import psutil

    ports: list[tuple[str, int]] = []
    files: list[str] = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = process.net_connections("tcp")
            ports += [tuple(c.laddr) for c in connections if c.status == psutil.CONN_LISTEN]
            files += [c.laddr for c in process.net_connections("unix") if c.laddr]
        if ports:
            break
    return [*dict.fromkeys(ports), *(f for f in dict.fromkeys(files) if f[0] != "@" and "/pymp-" not in f)]
