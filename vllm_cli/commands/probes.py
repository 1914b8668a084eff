"""`vllm-cli probes`: Kubernetes probes with values from the start records of this machine."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import click

from startup.timeline.history import read_starts

UNKNOWN_START_S: Final = 600.0
"""Allowed time without a start record: the default of VLLM_ENGINE_READY_TIMEOUT_S."""
LEAST_ALLOWED_S: Final = 60.0
"""On another node, the weights may not be in the page cache."""

_COMMAND_PERIOD_S: Final = 5
"""A command takes processor time from the starting server: it polls several times a second."""
_COMMAND_START_S: Final = 1
"""The part of a probe's timeout in which the command starts and exits."""


@dataclass(frozen=True, kw_only=True)
class ProbeTarget:
    """The server that the kubelet probes."""

    port: int = 8000
    is_tls: bool = False
    uds: str | None = None
    """A UNIX socket, which the kubelet cannot reach: it runs `vllm-cli wait` in the container instead."""
    is_vllm: bool = False
    """vLLM has only /health for all probes."""

    @property
    def live_path(self) -> str:
        return "/health" if self.is_vllm else "/livez"

    @property
    def ready_path(self) -> str:
        return "/health" if self.is_vllm else "/readyz"

    def action(self, path: str, timeout_s: int) -> dict[str, Any]:
        """The action of a probe."""
        if self.uds is not None:
            waits_s = str(timeout_s - _COMMAND_START_S)
            words = ["vllm-cli", "wait", "--quiet", "--uds", self.uds, "--path", path, "--timeout", waits_s]
            return {"exec": {"command": words}}
        scheme = {"scheme": "HTTPS"} if self.is_tls else {}
        return {"httpGet": {"path": path, "port": self.port, **scheme}}


def allowed_start_s(starts_s: Sequence[float], factor: float) -> float:
    """After this time the kubelet restarts the container; `starts_s` are the durations of earlier starts."""
    return max(factor * max(starts_s), LEAST_ALLOWED_S) if starts_s else UNKNOWN_START_S


def build_probes(target: ProbeTarget, starts_s: Sequence[float] = (), factor: float = 4) -> dict[str, Any]:
    """The three probes of a container.

    `/livez` responds from the first tenth of a second on, under any load: a server that loads, drains or
    restarts its engine is alive. `/readyz` is 200 once a real request has produced a token. It is polled at
    least ten times during a start, so that a ready pod does not wait long for its next probe.
    """
    period_s = min(max(int(min(starts_s, default=UNKNOWN_START_S) / 10), 1), 10)
    if target.uds is not None:
        period_s = max(period_s, _COMMAND_PERIOD_S)
    startup = {
        **target.action(target.ready_path, 5),
        "periodSeconds": period_s,
        "timeoutSeconds": 5,
        "failureThreshold": math.ceil(allowed_start_s(starts_s, factor) / period_s),
    }
    liveness = {**target.action(target.live_path, 5), "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3}
    readiness = {**target.action(target.ready_path, 2), "periodSeconds": 5, "timeoutSeconds": 2, "failureThreshold": 2}
    return {"startupProbe": startup, "livenessProbe": liveness, "readinessProbe": readiness}


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
    starts_s = [start.total_s for start in read_starts(model)]
    built = build_probes(ProbeTarget(is_vllm=engine == "vllm", **target), starts_s, factor)
    if form == "json":
        click.echo(json.dumps(built, indent=2))
        return
    import yaml

    click.echo(f"# {_describe(starts_s, model)}: {allowed_start_s(starts_s, factor):.0f} s are allowed.")
    click.echo(
        f"# In the pod: terminationGracePeriodSeconds: {_GRACE_S} (--shutdown-timeout, 30 by default, and a margin)"
    )
    click.echo(yaml.safe_dump(built, sort_keys=False), nl=False)


def _describe(starts_s: Sequence[float], model: str | None) -> str:
    subject = f" of {model}" if model else ""
    if not starts_s:
        return f"no start{subject} is recorded here"
    starts = "1 start" if len(starts_s) == 1 else f"{len(starts_s)} starts"
    return f"{starts}{subject} took {median(starts_s):.1f} s (median), {max(starts_s):.1f} s at most"
