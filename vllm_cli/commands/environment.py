"""Parts of `vllm-cli doctor`: all environment variables, and this machine. Secrets are masked."""

import json
import os
import platform
from typing import Any, Final

import click

from base.exit_codes import OK
from base.machine.hardware import cpu_model
from envs.registry import unknown_variables, variables
from envs.variable import EnvError, EnvVar
from startup.reports.timeline.history import installed_versions
from startup.words.errors import InputError
from vllm_cli.version import VERSION


def show_variables(*, is_json: bool) -> int:
    """Prints every environment variable: type, default, value and source. Raises InputError for a wrong one.

    Variables that only this program sets are shown only if they are set.
    """
    rows = [_describe(variable) for variable in variables() if not variable.is_internal or variable.raw is not None]
    click.echo(json.dumps(rows, indent=2) if is_json else "\n\n".join(map(_paragraph, rows)))
    problems = [row["error"] for row in rows if row["error"]] + [f"{unknown}." for unknown in unknown_variables()]
    if problems:
        raise InputError("\nError: ".join(problems))
    return OK


def _describe(variable: EnvVar[Any]) -> dict[str, Any]:
    """All facts about a variable, as JSON values."""
    try:
        value, error = variable.show(variable.get()), None
    except EnvError as err:
        value, error = variable.show(variable.raw), str(err)
    return {
        "name": variable.name,
        "type": variable.kind,
        "choices": list(variable.choices),
        "default": variable.show(variable.default),
        "value": value,
        "source": variable.source,
        "description": variable.description,
        "error": error,
    }


def _paragraph(row: dict[str, Any]) -> str:
    type_ = f"{row['type']}: {'|'.join(row['choices'])}" if row["type"] == "choice" else row["type"]
    return (
        f"{row['name']} = {row['value'] or '(unset)'}\n"
        f"  {row['description']}\n"
        f"  type {type_}, default {row['default'] or '(unset)'}, from the {row['source']}"
    )


_PACKAGES: Final = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "uvloop",
    "httptools",
    "msgspec",
    "llguidance",
    "click",
    "vllm",
)


def describe_machine() -> dict[str, Any]:
    """All facts for a bug report. Secrets are masked."""
    import psutil

    memory, versions = psutil.virtual_memory(), installed_versions(_PACKAGES)
    return {
        "vllm-cli": VERSION,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "cpu": {"model": cpu_model(), "cores": os.cpu_count(), "usable_cores": len(os.sched_getaffinity(0))},
        "memory": {"total_bytes": memory.total, "available_bytes": memory.available},
        "gpus": _gpus(),
        "packages": {name: versions.get(name) for name in _PACKAGES},
        "environment": {v.name: v.show(v.raw) for v in variables() if v.raw is not None},
    }


def _gpus() -> list[str]:
    from base.machine.nvml import read_gpus  # noqa: PLC0415 - loads ctypes

    if (state := read_gpus()) is None:
        return []
    if state.problem is not None:
        return [f"not usable: {state.problem}"]
    return [f"{gpu.name}, {gpu.total_bytes >> 20} MiB, driver {state.driver}" for gpu in state.gpus]
