"""Kubernetes probes for a server: request, period, and allowed time of a start."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

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
