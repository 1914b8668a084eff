"""Waits until a server is ready or has failed, or until the timeout."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from server.machine.processes import is_alive
from vllm_cli.client.readiness import Readiness, poll_readiness
from vllm_cli.client.server_address import ServerAddress

_ANSWER_TIMEOUT_S: Final = 5.0
"""Timeout of one request; a server may not respond for a while during imports."""
_LEAST_TIMEOUT_S: Final = 0.05

Ending = Literal["ready", "failed", "timed out"]


@dataclass(frozen=True, kw_only=True)
class WaitOptions:
    """Which server to wait for, and how."""

    address: ServerAddress
    path: str
    timeout_s: float
    interval_s: float
    """Pause between a response and the next request."""
    pid: int | None = None
    """The server's process; the waiting ends when it exits."""


@dataclass(frozen=True)
class WaitResult:
    """How the waiting ended."""

    ending: Ending
    waited_s: float
    num_requests: int
    last: Readiness

    def to_dict(self) -> dict[str, Any]:
        """The output of `--json`."""
        return {
            "status": self.ending,
            "waited_s": round(self.waited_s, 3),
            "num_requests": self.num_requests,
            "reason": self.last.reason or None,
            "phase": self.last.phase,
            "progress": self.last.progress,
        }


def wait_for_server(options: WaitOptions, on_poll: Callable[[Readiness, float], None]) -> WaitResult:
    """Polls until the server is ready; `on_poll` gets every result and the seconds since the beginning."""
    begin_s = time.monotonic()
    num_requests = 0
    last: Readiness | None = None
    while True:
        # Checked before the poll, since the process may exit after its last response.
        is_gone = options.pid is not None and not is_alive(options.pid)
        left_s = max(begin_s + options.timeout_s - time.monotonic(), _LEAST_TIMEOUT_S)
        result = poll_readiness(options.address, options.path, timeout_s=min(left_s, _ANSWER_TIMEOUT_S))
        if result.is_late and left_s < _ANSWER_TIMEOUT_S and last is not None:
            result = last  # the deadline cut this request short, so that its result says nothing about the server
        last = result
        num_requests += 1
        waited_s = time.monotonic() - begin_s
        if result.state in ("ready", "failed"):
            return WaitResult("ready" if result.state == "ready" else "failed", waited_s, num_requests, result)
        if is_gone:
            return WaitResult("failed", waited_s, num_requests, Readiness("failed", f"process {options.pid} has ended"))
        on_poll(result, waited_s)
        left_s = begin_s + options.timeout_s - time.monotonic()
        if left_s <= 0:
            return WaitResult("timed out", waited_s, num_requests, result)
        time.sleep(min(options.interval_s, left_s))
