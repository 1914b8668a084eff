"""`vllm-cli stop`: sends SIGTERM to servers, as a service manager does, and waits until they have ended."""

import sys
import time
from contextlib import closing, suppress
from typing import Any, Final

import click

from base.machine.processes import is_alive
from startup.arguments.errors import InputError
from vllm_cli.client.running_servers import RunningServer, find_servers, find_standbys
from vllm_cli.terminal import Reporter, Seconds

STOPPED: Final = 0
NOT_STOPPED: Final = 1
KILLED: Final = 4

_POLL_S: Final = 0.1
_AFTER_KILL_S: Final = 10.0


@click.command("stop")
@click.argument("which", metavar="[PORT|PID|ADDRESS]", required=False)
@click.option("--all", "is_all", is_flag=True, help="Stop all servers of this user here, but no standby.")
@click.option("-y", "--yes", "is_confirmed", is_flag=True, help="Stop all without asking.")
@click.option(
    *("--timeout", "timeout_s"),
    type=Seconds(0),
    default=60,
    show_default=True,
    help="Kill servers that still run after this time.",
)
@click.option("-q", "--quiet", "is_quiet", is_flag=True, help="Print nothing.")
def stop(*, which: str | None, is_all: bool, is_confirmed: bool, timeout_s: float, is_quiet: bool) -> int:
    """Stop the server that listens on PORT, or that has process id PID. Without both, stop the only server.

    A number can mean two servers: servers on different hosts may have the same port, or a process id may
    equal another server's port. In this case, give ADDRESS as `vllm-cli ps` shows it.

    The server gets SIGTERM. It rejects new requests, and finishes running requests within its
    --shutdown-timeout.

    \b
    Examples:
      vllm-cli stop
      vllm-cli stop 8001 --timeout 10
      vllm-cli stop http://127.0.0.1:8001
      vllm-cli stop --all --yes

    Without --yes, --all lists the servers. On a terminal, it then asks. Otherwise, it stops none of them.

    Exit codes: 0 all have stopped; 1 no such server, or not confirmed; 2 usage, or no --yes; 4 one killed.
    """
    if is_all and which is not None:
        raise InputError(f"Give {which} or --all, not both.")
    known = find_servers(with_state=False)
    servers = known if is_all else _choose(known, which)
    if not servers:
        click.echo(_describe_absence(which), err=True)
        return NOT_STOPPED
    if is_all and not is_confirmed:
        click.echo("\n".join(map(_name_of, servers)), err=True)
        if not (sys.stdin and sys.stdin.isatty()):
            raise InputError(f"Give --yes to stop all {len(servers)}.")
        if not click.confirm(f"Stop all {len(servers)}?", err=True):
            return NOT_STOPPED
    stopping = [_StoppingServer(server) for server in servers]
    with closing(Reporter(is_quiet=is_quiet)) as reporter:
        _wait(stopping, timeout_s, reporter)
    if not is_quiet:
        for server in stopping:
            click.echo(server.describe())
        for successor in _find_successors(known, {server.model for server in servers}):
            click.echo(
                f"Notice: {successor.model} is served again by process {successor.pid}: stop its supervisor.", err=True
            )
    return KILLED if any(server.is_killed for server in stopping) else STOPPED


def _choose(servers: list[RunningServer], which: str | None) -> list[RunningServer]:
    if which is not None:
        found: list[RunningServer] = []
        for server in servers:
            numbers = filter(None, (server.port, *server.entry_pids))
            if which in (server.address, *map(str, numbers)):
                found.append(server)
        if len(found) > 1:
            names = ", ".join(f"{s.address or s.pid} ({s.model}, process {s.pid})" for s in found)
            raise InputError(f"{len(found)} servers have port or process {which}: {names}. Name one by its address.")
        return found
    if len(servers) > 1:
        names = ", ".join(f"{s.port or s.pid} ({s.model})" for s in servers)
        raise InputError(f"{len(servers)} servers run: {names}. Name one, or give --all.")
    return servers


def _name_of(server: RunningServer) -> str:
    return f"{server.model} on {server.address or f'process {server.pid}'}"


def _describe_absence(which: str | None) -> str:
    if which is None:
        return "No server runs."
    if any(which in map(str, standby.pids) for standby in find_standbys()):
        return f"Process {which} belongs to a standby, which `vllm-cli standby stop` stops."
    return f"No server has port, process or address {which}."


def _find_successors(known: list[RunningServer], models: set[str | None]) -> list[RunningServer]:
    """New servers of these models, which a supervisor has started since the stop."""
    pids = {server.pid for server in known}
    return [s for s in find_servers(with_state=False) if s.pid not in pids and s.model in models]


def _wait(stopping: "list[_StoppingServer]", timeout_s: float, reporter: Reporter) -> None:
    begin_s = time.monotonic()
    while waiting := [server for server in stopping if server.alive()]:
        waited_s = time.monotonic() - begin_s
        if waited_s >= timeout_s:
            for server in waiting:
                server.kill()
            return
        reporter.update(f"{waited_s:5.1f} s  waiting for {', '.join(e.name for e in waiting)}")
        time.sleep(_POLL_S)


class _StoppingServer:
    """A server that is being stopped. psutil detects reused process ids by the processes' start times."""

    def __init__(self, server: RunningServer) -> None:
        import psutil

        self.name = _name_of(server)
        self.is_killed = False
        self._processes: list[Any] = []
        for pid in server.pids:
            with suppress(psutil.NoSuchProcess):
                self._processes.append(psutil.Process(pid))
        with suppress(psutil.NoSuchProcess):
            if self._processes and self._processes[0].pid == server.pid:
                self._processes[0].terminate()

    def kill(self) -> None:
        import psutil

        self.is_killed = True
        for process in self.alive():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        end_s = time.monotonic() + _AFTER_KILL_S
        while self.alive() and time.monotonic() < end_s:  # a zombie without a parent that waits counts as ended
            time.sleep(_POLL_S)

    def describe(self) -> str:
        if self.is_killed:
            return f"{self.name} did not stop in time and was killed"
        return f"{self.name} has stopped"

    def alive(self) -> list[Any]:
        return [process for process in self._processes if process.is_running() and is_alive(process.pid)]
