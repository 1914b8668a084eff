"""`vllm-cli env`: every environment variable with its value."""

import json
from typing import Any

import click

from envs.registry import unknown_variables, variables
from envs.variable import EnvError, EnvVar
from vllm_cli.errors import InputError


@click.command(name="env")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object per variable.")
def env_command(*, as_json: bool) -> None:
    """Show every environment variable: type, default, value and source. Secrets are masked.

    \b
    Examples:
      vllm-cli env
      VLLM_LOGGING_LEVEL=DEBUG vllm-cli env --json
    """
    rows = [describe(variable) for variable in variables()]
    click.echo(json.dumps(rows, indent=2) if as_json else "\n\n".join(map(_paragraph, rows)))
    problems = [row["error"] for row in rows if row["error"]] + [f"{unknown}." for unknown in unknown_variables()]
    if problems:
        raise InputError("\nError: ".join(problems))


def describe(variable: EnvVar[Any]) -> dict[str, Any]:
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
