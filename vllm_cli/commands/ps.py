"""`vllm-cli ps`: the servers that run on this machine, with address, state and memory."""

import json

import click

from startup.logs.formatters import escape_controls
from vllm_cli.client.running_servers import RunningServer, find_servers


@click.command("ps")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
def ps(*, is_json: bool) -> int:
    """Show the servers that run on this machine, oldest first.

    MEMORY is that of all processes of a server; shared memory counts once. STATE is what the server reports.

    \b
    Examples:
      vllm-cli ps
      vllm-cli ps --json | jq -r '.[].port'

    Exit codes: 0 at least one server runs, 1 no server runs.
    """
    servers = find_servers()
    if is_json:
        click.echo(json.dumps([server.to_dict() for server in servers], indent=2))
    else:
        click.echo("\n".join(_table(servers)))
    return 0 if servers else 1


def _table(servers: list[RunningServer]) -> list[str]:
    if not servers:
        return ["No server runs."]
    rows = [("PID", "ADDRESS", "STATE", "UP", "MEMORY", "ENGINE", "MODEL"), *map(_safe_row, servers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _safe_row(server: RunningServer) -> tuple[str, ...]:
    """Escapes control characters: command lines and responses of other users' servers are not trusted."""
    return tuple(escape_controls(cell).replace("\n", "\\n") for cell in _row(server))


def _row(server: RunningServer) -> tuple[str, ...]:
    return (
        str(server.pid),
        server.address or "-",
        server.state,
        _duration(server.uptime_s),
        f"{server.memory_bytes / (1 << 30):.2f} GiB",
        server.engine,
        server.model,
    )


def _duration(seconds: float) -> str:
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60}m"
    return f"{minutes}m {int(seconds) % 60}s" if minutes else f"{int(seconds)}s"
