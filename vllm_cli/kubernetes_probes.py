"""Kubernetes probes for a server: what to ask, how often, and how long a start may take."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

UNKNOWN_START_S: Final = 600.0
"""Allowed where no start is remembered: VLLM_ENGINE_READY_TIMEOUT_S by default."""
LEAST_ALLOWED_S: Final = 60.0
"""Another node may have to read the weights from a disk first."""

_COMMAND_PERIOD_S: Final = 5
"""A command costs the starting server some processor time; it looks several times a second while it waits."""
_COMMAND_START_S: Final = 1
"""Of a probe's time, for the command to begin and end."""


@dataclass(frozen=True, kw_only=True)
class ProbeTarget:
    """Where the kubelet asks."""

    port: int = 8000
    is_tls: bool = False
    uds: str | None = None
    """A socket that the kubelet cannot reach: it runs `vllm-cli wait` in the container."""
    is_vllm: bool = False
    """vLLM has /health for everything."""

    @property
    def live_path(self) -> str:
        return "/health" if self.is_vllm else "/livez"

    @property
    def ready_path(self) -> str:
        return "/health" if self.is_vllm else "/readyz"

    def action(self, path: str, timeout_s: int) -> dict[str, Any]:
        """What a probe does."""
        if self.uds is not None:
            waits_s = str(timeout_s - _COMMAND_START_S)
            words = ["vllm-cli", "wait", "--quiet", "--uds", self.uds, "--path", path, "--timeout", waits_s]
            return {"exec": {"command": words}}
        scheme = {"scheme": "HTTPS"} if self.is_tls else {}
        return {"httpGet": {"path": path, "port": self.port, **scheme}}


@dataclass(frozen=True, kw_only=True)
class StartTimes:
    """Seconds that earlier starts took."""

    seconds: Sequence[float]
    factor: float
    """How many times as long as the slowest one a start may take."""

    @property
    def allowed_s(self) -> float:
        """After this the kubelet starts the container afresh."""
        if not self.seconds:
            return UNKNOWN_START_S
        return max(self.factor * max(self.seconds), LEAST_ALLOWED_S)

    @property
    def period_s(self) -> int:
        """Often enough that the pod does not wait for its probe: a tenth of a start at most."""
        usual_s = min(self.seconds) if self.seconds else UNKNOWN_START_S
        return min(max(int(usual_s / 10), 1), 10)


def build_probes(target: ProbeTarget, times: StartTimes) -> dict[str, Any]:
    """The three probes of a container.

    `/livez` answers from the first tenth of a second on, and whatever the load: a server that loads, drains or waits
    for an engine that is being restarted is alive. `/readyz` is 200 when a real token has gone all the way through.
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
