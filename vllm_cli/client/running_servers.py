"""Finds the servers that run on this machine from /proc, which is never out of date."""

import contextlib
import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from server.machine.processes import process_age_s, pss_bytes
from startup.config import DEFAULT_MODEL_ID
from vllm_cli.client.router_status import RouterModel, describe, read_models
from vllm_cli.client.server_address import ServerAddress, reachable_host
from vllm_cli.client.server_processes import TEMPLATE_COMMAND, command_words, find_forked_servers
from vllm_cli.client.waiting import poll_readiness
from vllm_cli.errors import InputError
from vllm_cli.flags.arguments import Arguments
from vllm_cli.flags.config_file import read_config_file

_ANSWER_TIMEOUT_S: Final = 2.0
_PRELOADS: Final = {"startup.engine.preload": "embedded", "startup.vllm.fork.preload": "vllm"}
_STATES: Final = {"ready": "ready", "starting": "not ready", "absent": "silent", "failed": "dead"}


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """One server: the process tree of `vllm-cli serve`, with the servers that were forked for it.

    A router (`serve` with several models) is one server; its models' processes belong to it.
    """

    pid: int
    port: int | None
    """None for a UNIX socket, and before the server listens."""
    address: str | None
    model: str
    engine: str
    """`embedded`, `vllm` or `router`; `auto` if the server chose it, invisibly from outside."""
    state: str
    """`ready`, the server's own `status`, `silent`, or `elsewhere`: in another network namespace.

    `stopped` if it starts its model at the next request (`--idle-stop`).
    """
    uptime_s: float
    memory_bytes: int
    """PSS of all its processes, which divides shared pages among them."""
    pids: tuple[int, ...]
    """The process that the user started first."""

    forked_pid: int | None
    """In a warm start, the forked server; None for a router."""

    models: tuple[RouterModel, ...] | None = None
    """Those of a router; None for other servers, and if the router does not tell them."""

    @property
    def entry_pids(self) -> tuple[int, ...]:
        """The processes by which a user may name this server."""
        return (self.pid,) if self.forked_pid is None else (self.pid, self.forked_pid)

    def to_dict(self) -> dict[str, Any]:
        """The output of `--json`."""
        entry = {"kind": "server"} | vars(self) | {"uptime_s": round(self.uptime_s, 1), "pids": list(self.pids)}
        models = entry.pop("models")
        return entry if models is None else entry | {"models": [model.to_dict() for model in models]}


def find_servers(*, with_state: bool = True) -> list[RunningServer]:
    """All servers that this user may see, oldest first.

    Args:
        with_state: also determine state and memory, which takes some milliseconds per server.
    """
    import psutil

    mains = {p.pid: p for p in psutil.process_iter() if command_words(p, "serve") is not None}
    forked = find_forked_servers(mains.values())
    found = []
    for process in mains.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.pid not in forked and not any(parent.pid in mains for parent in process.parents()):
                started = {process.pid, *(child.pid for child in process.children(recursive=True))}
                trees = [process, *(mains[pid] for pid, client_pid in forked.items() if client_pid in started)]
                found.append((process.create_time(), _describe(trees, with_state)))
    return [server for _, server in sorted(found, key=lambda pair: pair[0])]


def _describe(trees: list[Any], with_state: bool) -> RunningServer:
    """
    Args:
        trees: the process that the user started, and the servers that were forked for it: in a warm start
            one, for a router one for each model that runs.
        with_state: see `find_servers`.
    """
    process = trees[0]
    arguments = _parse(process, command_words(process, "serve") or [])
    processes = _members(trees)
    is_elsewhere = has_own_network(process)
    listening = None if is_elsewhere else find_socket(processes, arguments)
    is_tls = arguments.last_value("--ssl-certfile") is not None
    address = address_of(listening, is_tls=is_tls) if listening else None
    is_router = _is_router(arguments)
    models = read_models(address) if is_router and with_state and address is not None else None
    return RunningServer(
        pid=process.pid,
        port=listening[1] if isinstance(listening, tuple) else None,
        address=str(address) if address else None,
        model=_router_name(arguments, models) if is_router else _model(arguments),
        engine="router" if is_router else _engine(processes, arguments),
        state=("elsewhere" if is_elsewhere else _poll_state(address)) if with_state else "",
        uptime_s=process_age_s(process.pid) or 0.0,
        memory_bytes=sum(pss_bytes(p.pid) for p in processes) if with_state else 0,
        pids=tuple(p.pid for p in processes),
        forked_pid=trees[1].pid if len(trees) > 1 and not is_router else None,
        models=models,
    )


def _members(trees: list[Any]) -> list[Any]:
    """All processes of the trees, once, without a standby of the server's own: that is listed by itself."""
    found = {member.pid: member for root in trees for member in (root, *root.children(recursive=True))}
    commands = ("standby", TEMPLATE_COMMAND)
    return [p for p in found.values() if all(command_words(p, command) is None for command in commands)]


def _parse(process: Any, words: list[str]) -> Arguments:
    """Empty if the words are not valid here: the server may be another version with other rules.

    The file of another user's process is not read: its content could be anything.
    """
    try:
        given = Arguments.parse(words)
        path = Path(f"/proc/{process.pid}/cwd", given.last_value("--config") or "")
        is_readable = process.uids().real == os.geteuid() and path.is_file()  # opening a pipe would wait for a writer
        in_file = read_config_file(path) if is_readable else Arguments()
    except InputError:
        return Arguments()
    in_file.flags.update(given.flags)
    in_file.positionals = given.positionals or in_file.positionals
    return in_file


def _model(arguments: Arguments) -> str:
    served = arguments.flags.get("--served-model-name")
    named = served.values[0] if served else None
    model = arguments.positionals[0] if arguments.positionals else arguments.last_value("--model")
    return named or model or DEFAULT_MODEL_ID


def _is_router(arguments: Arguments) -> bool:
    return arguments.last_value("--models") is not None or len(arguments.positionals) > 1


def _router_name(arguments: Arguments, models: tuple[RouterModel, ...] | None) -> str:
    """How many models it has; without an answer of the router, the words that named them."""
    if models is not None:
        return describe(models)
    return arguments.last_value("--models") or ", ".join(arguments.positionals)


def _engine(processes: list[Any], arguments: Arguments) -> str:
    """As given by --engine, else by the module that the forkserver's command line names."""
    import psutil

    named = arguments.last_value("--engine") or "auto"
    if named != "auto":
        return named
    for process in processes[1:]:
        with contextlib.suppress(psutil.Error, OSError):
            words = " ".join(process.cmdline())
            for preload, engine in _PRELOADS.items():
                if preload in words:
                    return engine
    return named


def _poll_state(address: ServerAddress | None) -> str:
    if address is None:
        return "not listening"
    readiness = poll_readiness(address, "/health", timeout_s=_ANSWER_TIMEOUT_S)
    return readiness.status or _STATES[readiness.state]


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
