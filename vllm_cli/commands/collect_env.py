"""`vllm-cli collect-env`: facts about this machine for a bug report."""

import json
from typing import Any

import click

from vllm_cli.machine import describe_machine


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
