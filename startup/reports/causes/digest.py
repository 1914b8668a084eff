"""Writes a cause in three lines at most, or as the members of a JSON object."""

import re
from typing import Any, Final

from envs.redaction import hide_in_command
from startup.ground.logs.formatters import escape_controls
from startup.reports.causes.first_cause import Cause
from startup.reports.causes.known.processes import STOPPED

_LABEL: Final = re.compile(r"(.{1,90}?),? pid=(\d{1,12})")
_OF_ROCM: Final = re.compile(r"\bhip|\bHIP\b|ROCm|HSA_")
_ROCM_NAMES: Final = (
    ("nvidia-smi", "rocm-smi"),
    ("CUDA_LAUNCH_BLOCKING=1", "AMD_SERIALIZE_KERNEL=3"),
    ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
)
"""What AMD's tools and variables are called."""
_ROLES: Final = {
    "worker": "A worker",
    "engine core": "The engine core",
    "API server": "The API server",
    "engine": "The engine",
    "API process": "The API process",
    "": "The server",
}
"""Those of vLLM and of the embedded engine; llama.cpp's server has none."""


def write_digest(cause: Cause) -> list[str]:
    """Which process failed in which phase; the cause; what to do, if a message of ours does not tell it."""
    happened = "was stopped" if cause.known is STOPPED else "failed"
    first = " ".join(part for part in (_name(cause.process), happened, cause.phase) if part)
    if cause.is_mention:
        kind = "names a cause" if cause.known else "is the message of an error"
        first = f"Line {cause.line} {kind}; nothing else in this log tells what failed"
    if cause.known is None:
        advice = f"read the log around line {cause.line}; search vLLM's issues for this text; try its newest release."
        return [f"{first}.", f"Cause: {shown(cause.text)}", *([f"Do: {advice}"] if cause.line else [])]
    return [f"{first}.", f"Cause: {cause.known.title}: {shown(cause.text)}", f"Do: {_advice(cause)}"]


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
        "advice": _advice(cause) or None,
    }


def _advice(cause: Cause) -> str:
    advice = cause.known.advice if cause.known else ""
    if not _OF_ROCM.search(cause.text):
        return advice
    for of_cuda, of_rocm in _ROCM_NAMES:
        advice = advice.replace(of_cuda, of_rocm)
    return advice


def shown(text: str) -> str:
    """Text of a log without secrets and control characters."""
    return escape_controls(hide_in_command(text))


def _name(process: str) -> str:
    if process in _ROLES:
        return _ROLES[process]
    label = _LABEL.fullmatch(process)
    return shown(f"{label[1]} (pid {label[2]})" if label else process)
