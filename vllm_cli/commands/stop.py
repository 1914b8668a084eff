"""`vllm-cli stop`: ends servers as a service manager does, by a signal, and sees to it that they are gone."""

import sys
import time
from typing import Any, Final

import click

from startup.timeline.live_line import LiveLine
from vllm_cli.client.running_servers import RunningServer, find_servers
from vllm_cli.errors import InputError

STOPPED: Final = 0
NOT_STOPPED: Final = 1
KILLED: Final = 4

_LOOK_S: Final = 0.1
_AFTER_KILL_S: Final = 10.0


@click.command("stop")
@click.argument("which", metavar="[PORT|PID]", type=click.IntRange(1), required=False)
@click.option("--all", "is_all", is_flag=True, help="Every server on this machine that may be stopped.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="What is not gone by then is killed.",
)
@click.option("-q", "--quiet", "is_quiet", is_flag=True, help="Say nothing; the exit code tells.")
def stop(*, which: int | None, is_all: bool, timeout_s: float, is_quiet: bool) -> int:
    """Stop the server that listens on PORT or whose process is PID; without either, the only one that runs.

    The server gets SIGTERM: it refuses new requests and finishes those that run, for as long as its
    --shutdown-timeout lets it.

    \b
    Examples:
      vllm-cli stop
      vllm-cli stop 8001 --timeout 10
      vllm-cli stop --all

    Exit codes: 0 all are gone, 1 there is no such server or it may not be stopped, 2 usage, 4 one had to be killed.
    """
    if is_all and which is not None:
        raise InputError(f"Give {which} or --all, not both.")
    known = find_servers(looks_closer=False)
    servers = known if is_all else _choose(known, which)
    if not servers:
        click.echo("No server runs." if which is None else f"No server has port or process {which}.", err=True)
        return NOT_STOPPED
    endings = [_Ending(server) for server in servers]
    if is_all:
        endings = [ending for ending in endings if ending.code != NOT_STOPPED] or endings
    live = LiveLine(sys.stderr)
    try:
        _wait(endings, timeout_s, live)
    finally:
        live.close()
    if not is_quiet:
        for ending in endings:
            click.echo(ending.describe(), err=ending.code == NOT_STOPPED)
        for heir in _find_heirs(known, {server.model for server in servers}):
            click.echo(f"Notice: {heir.model} is served again, by process {heir.pid}: stop what starts it.", err=True)
    codes = {ending.code for ending in endings}
    return NOT_STOPPED if NOT_STOPPED in codes else max(codes)


def _choose(servers: list[RunningServer], which: int | None) -> list[RunningServer]:
    if which is not None:
        by_port = [s for s in servers if s.port == which]
        if len(by_port) > 1:
            names = ", ".join(f"{s.pid} ({s.model} on {s.address})" for s in by_port)
            raise InputError(f"{len(by_port)} servers have port {which}: {names}. Name one by its process.")
        return by_port or [s for s in servers if s.pid == which]
    if len(servers) > 1:
        names = ", ".join(f"{s.port or s.pid} ({s.model})" for s in servers)
        raise InputError(f"{len(servers)} servers run: {names}. Name one, or give --all.")
    return servers


def _find_heirs(known: list[RunningServer], models: set[str]) -> list[RunningServer]:
    """Servers that have come meanwhile to do the same, as far as their supervisor was as quick as that."""
    pids = {server.pid for server in known}
    return [s for s in find_servers(looks_closer=False) if s.pid not in pids and s.model in models]


def _wait(endings: "list[_Ending]", timeout_s: float, live: LiveLine) -> None:
    begin_s = time.monotonic()
    while waiting := [ending for ending in endings if not ending.is_over()]:
        waited_s = time.monotonic() - begin_s
        if waited_s >= timeout_s:
            for ending in waiting:
                ending.kill()
            return
        if live.is_on:
            live.show(f"{waited_s:5.1f} s  waiting for {', '.join(e.name for e in waiting)}")
        time.sleep(_LOOK_S)


class _Ending:
    """One server on its way out; processes are told from later ones with the same number by when they started."""

    def __init__(self, server: RunningServer) -> None:
        import psutil

        self.name = f"{server.model} on {server.address or f'process {server.pid}'}"
        self.code = STOPPED
        self._family: list[Any] = []
        for pid in server.pids:
            try:
                self._family.append(psutil.Process(pid))
            except psutil.NoSuchProcess:
                continue
        try:
            if self._family and self._family[0].pid == server.pid:
                self._family[0].terminate()
        except psutil.NoSuchProcess:
            pass
        except psutil.AccessDenied:
            self.code = NOT_STOPPED

    def is_over(self) -> bool:
        """Whether nothing of the server is left, or nothing can be done."""
        return self.code == NOT_STOPPED or not self._alive()

    def kill(self) -> None:
        """Ends at once what is left of the server."""
        import psutil

        self.code = KILLED
        alive = self._alive()
        for process in alive:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(alive, timeout=_AFTER_KILL_S)

    def describe(self) -> str:
        """What became of it."""
        match self.code:
            case 0:
                return f"{self.name} has stopped"
            case 1:
                return f"Error: {self.name} may not be stopped by this user"
            case _:
                return f"{self.name} did not stop in time and was killed"

    def _alive(self) -> list[Any]:
        return [process for process in self._family if _is_alive(process)]


def _is_alive(process: Any) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # it has ended between the two
        return False
