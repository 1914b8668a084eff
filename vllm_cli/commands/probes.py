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


@dataclass(frozen=True, kw_only=True)
class StartTimes:
    """Durations of earlier starts."""

    seconds: Sequence[float]
    factor: float
    """Allowed time of a start as a multiple of the slowest one."""

    @property
    def allowed_s(self) -> float:
        """After this time the kubelet restarts the container."""
        if not self.seconds:
            return UNKNOWN_START_S
        return max(self.factor * max(self.seconds), LEAST_ALLOWED_S)

    @property
    def period_s(self) -> int:
        """At most a tenth of a start, so that a ready pod does not wait long for its next probe."""
        usual_s = min(self.seconds) if self.seconds else UNKNOWN_START_S
        return min(max(int(usual_s / 10), 1), 10)


def build_probes(target: ProbeTarget, times: StartTimes) -> dict[str, Any]:
    """The three probes of a container.

    `/livez` responds from the first tenth of a second on, under any load: a server that loads, drains or
    restarts its engine is alive. `/readyz` is 200 once a real request has produced a token.
    """
    period_s = times.period_s if target.uds is None else max(times.period_s, _COMMAND_PERIOD_S)
    startup = {
        **target.action(target.ready_path, 5),
        "periodSeconds": period_s,
        "timeoutSeconds": 5,
        "failureThreshold": math.ceil(times.allowed_s / period_s),
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
