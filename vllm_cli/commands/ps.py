"""`vllm-cli ps`: shows this user's servers and standbys with address, state and memory."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click

from base.lifecycle import StartInfo
from vllm_cli.client.running_servers import RouterModel, RunningServer, find_servers, find_standbys
from vllm_cli.terminal import align, printable


@click.command("ps")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
def ps(*, is_json: bool) -> int:
    """Show the servers of this user that run on this machine, oldest first, then the standbys.

    MEMORY is the memory of all processes of a server. Shared memory counts once. STATE is the state that the
    server reports. For a server that a standby has forked, PID is the process that the user has started. A
    server whose model is stopped (`serve --idle-stop`) has the STATE `stopped`. Its standby has a line of its
    own.

    A server with several models (`serve --models`, `serve A B`) has one line for all its processes, and one
    line for each model. In a model's line, UP is how long the model has been in its STATE. LOG is the file to
    which a process writes its errors, if there is such a file (`2> FILE`).

    START is `warm` (forked from a standby), `cold` or `plain` (vLLM without preloading), with the seconds
    until the server was ready, and how many CUDA graphs vLLM has captured so far. Lines below the table give
    the reasons for plain and cold starts and for compilations.

    \b
    Examples:
      vllm-cli ps
      vllm-cli ps --json | jq -r '.[] | select(.kind == "server") | .port'
      vllm-cli ps --json | jq -r '.[].models[]? | select(.state == "ready") | .model'

    Exit codes: 0 at least one server runs, 1 no server runs.
    """
    servers, standbys = find_servers(), find_standbys()
    if is_json:
        entries = [each.to_dict() for each in (*servers, *standbys)]
        click.echo(json.dumps(entries, indent=2))
    else:
        click.echo("\n".join(_table(servers, standbys)))
    return 0 if servers else 1


def _table(servers: list[RunningServer], standbys: list[RunningServer]) -> list[str]:
    nothing = [] if servers else ["No server runs."]
    if not servers and not standbys:
        return nothing
    rows: list[tuple[str, ...]] = [("PID", "ADDRESS", "STATE", "UP", "MEMORY", "START", "ENGINE", "MODEL", "LOG")]
    for server in servers:
        rows_of_models = map(_model_row, server.models or ())
        rows += [printable(row) for row in (_row(server), *rows_of_models)]
    rows += [printable(_row(standby)) for standby in standbys]
    return [*nothing, *align(rows), *_reasons(servers, has_standby=bool(standbys))]


def _row(server: RunningServer) -> tuple[str, ...]:
    owner = "-" if server.owner_pid is None else f"of {server.owner_pid}"
    return (
        str(server.pid),
        server.address or "-",
        server.state,
        _duration(server.uptime_s),
        _size(server.memory_bytes),
        _start(server.start),
        server.engine or server.kind,
        owner if server.model is None else server.model,
        server.log or "-",
    )


def _model_row(model: RouterModel) -> tuple[str, ...]:
    return (
        "  -" if model.pid is None else f"  {model.pid}",
        "-",
        model.state,
        "-" if model.since_s is None else _duration(model.since_s),
        "-" if model.memory_bytes is None else _size(model.memory_bytes),
        _start(model.start),
        model.engine,
        model.model,
        "-",
    )


def _start(start: Mapping[str, Any] | None) -> str:
    """Text such as `warm, 1.2 s`. Before the server is ready, only the mode."""
    if start is None:
        return "-"
    mode, ready_s, graphs = str(start.get("start_mode")), start.get("ready_s"), start.get("cuda_graphs")
    text = f"{mode}, {ready_s:.1f} s" if isinstance(ready_s, int | float) else mode
    if isinstance(graphs, Mapping):
        of_total = f" of {graphs.get('total')}" if graphs.get("state") == "capturing" else ""
        text += f", {graphs.get('captured')}{of_total} CUDA graphs"
    return text


def _reasons(servers: Iterable[RunningServer], *, has_standby: bool) -> Iterator[str]:
    """Yields the reasons of plain starts and compilations, and of cold starts that could have been warm."""
    entries: list[RunningServer | RouterModel] = []
    for server in servers:
        entries += [server, *(server.models or ())]
    for each in entries:
        info = StartInfo.from_notes(each.start or {})
        if info.compile_reason or (info.reason and (has_standby or info.start_mode == "plain")):
            yield from printable([f"{each.pid}: {info}"])


def _size(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.2f} GiB"


def _duration(seconds: float) -> str:
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60}m"
    return f"{minutes}m {int(seconds) % 60}s" if minutes else f"{int(seconds)}s"
