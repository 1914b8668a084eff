"""Writes a cause in three lines at most, or as the members of a JSON object."""

import re
from typing import Any, Final

from envs.redaction import hide_in_command
from startup.causes.first_cause import Cause
from startup.causes.known.processes import STOPPED
from startup.logs.formatters import escape_controls

_LABEL: Final = re.compile(r"(.{1,90}?),? pid=(\d{1,12})")
_ROLES: Final = {
    "worker": "A worker",
    "engine core": "The engine core",
    "API server": "The API server",
    "engine": "The engine",
    "API process": "The API process",
    "": "vLLM",
}
"""Those of vLLM and of the embedded engine."""


def write_digest(cause: Cause) -> list[str]:
    """Which process failed in which phase; the cause; what to do, if a message of ours does not tell it."""
    happened = "was stopped" if cause.known is STOPPED else "failed"
    first = " ".join(part for part in (_name(cause.process), happened, cause.phase) if part)
    if cause.is_mention:
        first = f"Line {cause.line} names a cause; nothing else in this log tells what failed"
    if cause.known is None:
        advice = f"read the log around line {cause.line}; search vLLM's issues for this text; try its newest release."
        return [f"{first}.", f"Cause: {shown(cause.text)}", *([f"Do: {advice}"] if cause.line else [])]
    return [
        f"{first}.",
        f"Cause: {cause.known.title}: {shown(cause.text)}",
        f"Do: {cause.known.advice}",
    ]


def digest_to_dict(cause: Cause) -> dict[str, Any]:
    """The same for programs; `cause`, `title` and `advice` are None if the cause is not known."""
    known = cause.known
    return {
        "process": shown(cause.process) or None,
        "phase": cause.phase.removeprefix("while it ") or None,
        "cause": known.name if known else None,
        "title": known.title if known else None,
        "text": shown(cause.text),
        "line": cause.line,
        "advice": known.advice if known else None,
    }


def shown(text: str) -> str:
    """Text of a log without secrets and control characters."""
    return escape_controls(hide_in_command(text))


def _name(process: str) -> str:
    if process in _ROLES:
        return _ROLES[process]
    label = _LABEL.fullmatch(process)
    return shown(f"{label[1]} (pid {label[2]})" if label else process)
