"""`vllm-cli collect-env`: facts about this machine for a bug report."""

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import click

from base.machine.hardware import cpu_model
from envs.registry import variables
from vllm_cli.version import VERSION


@click.command(name="collect-env")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def collect_env(*, as_json: bool) -> None:
    """Describe this machine, its hardware and its packages for a bug report. Secrets are masked.

    \b
    Examples:
      vllm-cli collect-env
      vllm-cli collect-env --json
    """
    facts = describe_machine()
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(_lines(facts)))


def _lines(facts: dict[str, Any]) -> list[str]:
    lines = []
    for name, fact in facts.items():
        if isinstance(fact, dict):
            lines += [f"{name}:", *(f"  {key}: {_shown(value)}" for key, value in fact.items())]
        elif isinstance(fact, list):
            lines.append(f"{name}: {', '.join(fact) or 'none'}")
        else:
            lines.append(f"{name}: {fact}")
    return lines


def _shown(value: object) -> str:
    return "not installed" if value is None else str(value)


PACKAGES: Final = (
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

_GPU_QUERY: Final = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


def describe_machine() -> dict[str, Any]:
    """All facts for a bug report; secrets are masked."""
    return {
        "vllm-cli": VERSION,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "cpu": _cpu(),
        "memory": _memory(),
        "gpus": _gpus(),
        "packages": {name: _version_of(name) for name in PACKAGES},
        "environment": {v.name: v.show(v.raw) for v in variables() if v.raw is not None},
    }


def _cpu() -> dict[str, Any]:
    return {"model": cpu_model(), "cores": os.cpu_count(), "usable_cores": len(os.sched_getaffinity(0))}


def _memory() -> dict[str, int]:
    import psutil

    memory = psutil.virtual_memory()
    return {"total_bytes": memory.total, "available_bytes": memory.available}


def _gpus() -> list[str]:
    try:
        query = subprocess.run(_GPU_QUERY, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in query.stdout.splitlines() if line.strip()]


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
