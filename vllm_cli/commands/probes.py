"""`vllm-cli probes`: Kubernetes probes with values from the start records of this machine."""

import json
from statistics import median
from typing import Any, Final

import click

from startup.timeline.history import read_starts
from vllm_cli.kubernetes_probes import ProbeTarget, StartTimes, build_probes

_GRACE_S: Final = 45
"""The default of --shutdown-timeout, and time for the processes to exit."""


@click.command("probes")
@click.argument("model", required=False)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port of the server.")
@click.option("--ssl", "is_tls", is_flag=True, help="The server speaks HTTPS.")
@click.option("--uds", metavar="PATH", help="UNIX domain socket of the server; the probes then run `vllm-cli wait`.")
@click.option(
    "--engine",
    type=click.Choice(("embedded", "vllm")),
    default="embedded",
    show_default=True,
    help="Engine of the server; vLLM has no /livez and /readyz.",
)
@click.option(
    "--factor",
    type=click.FloatRange(1),
    default=4,
    show_default=True,
    help="Allowed time of a start as a multiple of the slowest recorded one; at least a minute.",
)
@click.option(
    "--format", "form", type=click.Choice(("yaml", "json")), default="yaml", show_default=True, help="Output format."
)
def probes(*, model: str | None, factor: float, form: str, engine: str, **target: Any) -> None:
    """Print startup, liveness and readiness probes for a container that serves MODEL.

    The allowed time of a start follows from the start records in the cache folder: those of MODEL, by its own
    or its served name, or all. Without a record, ten minutes are allowed.

    \b
    Examples:
      vllm-cli probes
      vllm-cli probes Qwen/Qwen3-0.6B --port 9000 --factor 6
      vllm-cli probes --uds /run/vllm.sock --format json | jq .startupProbe
    """
    times = StartTimes(seconds=[start.total_s for start in read_starts(model)], factor=factor)
    built = build_probes(ProbeTarget(is_vllm=engine == "vllm", **target), times)
    if form == "json":
        click.echo(json.dumps(built, indent=2))
        return
    import yaml

    click.echo(_describe(times, model))
    click.echo(yaml.safe_dump(built, sort_keys=False), nl=False)


def _describe(times: StartTimes, model: str | None) -> str:
    subject = f" of {model}" if model else ""
    if times.seconds:
        starts = "1 start" if len(times.seconds) == 1 else f"{len(times.seconds)} starts"
        known = f"{starts}{subject} took {median(times.seconds):.1f} s (median), {max(times.seconds):.1f} s at most"
    else:
        known = f"no start{subject} is recorded here"
    return (
        f"# {known}: {times.allowed_s:.0f} s are allowed.\n"
        f"# In the pod: terminationGracePeriodSeconds: {_GRACE_S} (--shutdown-timeout, 30 by default, and a margin)"
    )
