"""`vllm-cli explain`: finds in the log of a failed vLLM what failed first, and shows what to do."""

import json
from typing import BinaryIO, Final

import click

from startup.reports.causes.digest import digest_to_dict, write_digest
from startup.reports.causes.first_cause import KNOWN, find_cause
from startup.reports.causes.log_line import read_lines

_NOTHING_FAILED: Final = 1


@click.command("explain")
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.option("--list", "lists_causes", is_flag=True, help="Print all known causes, with what to do.")
def explain(file: BinaryIO, is_json: bool, lists_causes: bool) -> int:
    """Find in the log of a failed vLLM what failed first, and show what to do.

    FILE is the log of `vllm serve` or `vllm-cli serve`, of any size; by default it is read from standard
    input. Prefixes of Docker, Kubernetes, journald, Ray and others do not matter. If the log has several
    runs, the last one counts.

    \b
    Examples:
      kubectl logs --previous POD | vllm-cli explain
      docker logs vllm 2>&1 | vllm-cli explain
      vllm-cli explain vllm.log --json

    Exit codes: 0 a failure was found; 1 nothing in the log failed; 2 usage.
    """
    if lists_causes:
        click.echo("\n\n".join(f"{cause.name}: {cause.title}\nDo: {cause.advice}" for cause in KNOWN))
        return 0
    cause = find_cause(read_lines(file))
    if is_json:
        click.echo(json.dumps({"failed": cause is not None, **(digest_to_dict(cause) if cause else {})}))
    elif cause:
        click.echo("\n".join(write_digest(cause)))
    else:
        click.echo("Nothing in this log failed. Is it the complete output, with standard error?", err=True)
    return 0 if cause else _NOTHING_FAILED
