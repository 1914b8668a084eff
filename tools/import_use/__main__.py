"""`make imports`: which modules each process of a start imports, for how long, and which it never uses.

    python -m tools.import_use "vllm-cli serve MODEL" "vllm-cli wait && vllm-cli chat --quick Hi"

The second command runs beside the first, and sends requests. When it has ended, the first one is ended, and
the tables are printed. A module is used if one of its functions runs after the module's own import. Before
Python 3.12, recording makes imports several times slower.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import click

_RECORDER: Final = Path(__file__).parent / "recorder"
_DEPTH: Final = 2
"""How many parts of a module's name make a row."""
_LEAST_MS: Final = 50.0
"""Rows with less unused time are left out."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("command")
@click.argument("until")
def main(command: str, until: str) -> None:
    """Record COMMAND until UNTIL has ended."""
    with tempfile.TemporaryDirectory() as folder:
        path = ":".join(filter(None, (str(_RECORDER), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "IMPORT_USE_FOLDER": folder}
        with subprocess.Popen(["sh", "-c", f"exec {command}"], env=environment) as process:
            code = subprocess.run(["sh", "-c", until], check=False).returncode
            process.terminate()
        records = [json.loads(file.read_text()) for file in Path(folder).glob("*.json")]
    for record in sorted(records, key=lambda record: -len(record["modules"])):
        _print(record)
    sys.exit(code)


def _print(record: dict[str, Any]) -> None:
    """Prints the packages that this process or its parent has imported and this process has not used."""
    modules, used = record["modules"], set(record["used"])
    num_own = sum("inherited" not in module for module in modules.values())
    total = sum(module["ms"] for module in modules.values())
    click.echo(f"\n{record['command'][:100]}: {len(modules)} modules, {num_own} of its own, {total:.0f} ms\n")
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, module in modules.items():
        if module["file"] not in used:
            rows[".".join(name.split(".")[:_DEPTH])].append(module)
    click.echo("| never used | ms | modules | first imported by |\n|---|---|---|---|")
    for name, found in sorted(rows.items(), key=lambda row: -sum(module["ms"] for module in row[1])):
        if (spent := sum(module["ms"] for module in found)) >= _LEAST_MS:
            click.echo(f"| {name} | {spent:.0f} | {len(found)} | {found[0]['by']} |")


main()
