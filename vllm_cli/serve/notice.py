"""Notices of the command line before logging is set up, in the log's format."""

from collections.abc import Iterable

import click


def show_notices(notices: Iterable[str], log_format: str) -> None:
    """One line each on standard error; as JSON they have the form of log lines."""
    for notice in notices:
        click.echo(_as_json(notice) if log_format == "json" else f"Notice: {notice}", err=True)


def _as_json(notice: str) -> str:
    from startup.logs.json_lines import format_warning

    return format_warning(notice, logger="vllm_cli", role="api", phase="command_line")
