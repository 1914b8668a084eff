"""`vllm-cli env` shows all environment variables. `vllm-cli collect-env` describes this machine."""

import json
import os
import platform
from typing import Any, Final

import click

from base.machine.hardware import cpu_model
from envs.registry import unknown_variables, variables
from envs.variable import EnvError, EnvVar
from startup.reports.timeline.history import installed_versions
from startup.words.errors import InputError
from vllm_cli.commands.of_vllm import vllms_own
from vllm_cli.version import VERSION


@click.command(name="env")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of variables.")
def env_command(*, as_json: bool) -> None:
    """Show every environment variable: type, default, value and source. Secrets are masked.

    Variables that only this program sets are shown only if they are set.

    \b
    Examples:
      vllm-cli env
      VLLM_LOGGING_LEVEL=DEBUG vllm-cli env --json
    """
    rows = [_describe(variable) for variable in variables() if not variable.is_internal or variable.raw is not None]
    click.echo(json.dumps(rows, indent=2) if as_json else "\n\n".join(map(_paragraph, rows)))
    problems = [row["error"] for row in rows if row["error"]] + [f"{unknown}." for unknown in unknown_variables()]
    if problems:
        raise InputError("\nError: ".join(problems))


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


@click.command(name="collect-env", epilog=vllms_own("collect-env"))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def collect_env(*, as_json: bool) -> None:
    """Describe this machine, its hardware and its packages for a bug report. Secrets are masked.

    \b
    Examples:
      vllm-cli collect-env
      vllm-cli collect-env --json
    """
    import yaml

    facts = describe_machine()
    click.echo(
        json.dumps(facts, indent=2) if as_json else yaml.safe_dump(facts, sort_keys=False, width=1000), nl=as_json
    )


_PACKAGES: Final = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "starlette",
    "uvicorn",
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
