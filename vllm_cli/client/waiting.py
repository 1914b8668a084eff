"""Waits until a server is ready, has failed, or the time is up."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from vllm_cli.client.readiness import Readiness, ask_readiness
from vllm_cli.client.server_address import ServerAddress

_ANSWER_TIMEOUT_S: Final = 5.0
"""How long one request may take; a server that imports may be silent for a while."""
_LEAST_TIMEOUT_S: Final = 0.05

Ending = Literal["ready", "failed", "timed out"]


@dataclass(frozen=True, kw_only=True)
class WaitOptions:
    """What to wait for and how."""

    address: ServerAddress
    path: str
    timeout_s: float
    interval_s: float
    """Pause between an answer and the next request."""
    pid: int | None = None
    """The server's process; without it there is nothing to wait for."""


@dataclass(frozen=True)
class WaitResult:
    """How the waiting ended."""

    ending: Ending
    waited_s: float
    num_requests: int
    last: Readiness

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "status": self.ending,
            "waited_s": round(self.waited_s, 3),
            "num_requests": self.num_requests,
            "reason": self.last.reason or None,
            "phase": self.last.phase,
            "progress": self.last.progress,
        }


def wait_for_server(options: WaitOptions, on_look: Callable[[Readiness, float], None]) -> WaitResult:
    """Asks until the server is ready; `on_look` gets every answer and the seconds since the waiting began."""
    begin_s = time.monotonic()
    num_requests = 0
    known: Readiness | None = None
    while True:
        # Whether the process lives is asked first: it may have died between its last answer and now.
        is_gone = options.pid is not None and not _is_alive(options.pid)
        left_s = max(begin_s + options.timeout_s - time.monotonic(), _LEAST_TIMEOUT_S)
        look = ask_readiness(options.address, options.path, timeout_s=min(left_s, _ANSWER_TIMEOUT_S))
        if look.is_late and left_s < _ANSWER_TIMEOUT_S and known is not None:
            look = known  # a request that is cut short by the end of the waiting says nothing about the server
        known = look
        num_requests += 1
        waited_s = time.monotonic() - begin_s
        if look.state in ("ready", "failed"):
            return WaitResult("ready" if look.state == "ready" else "failed", waited_s, num_requests, look)
        if is_gone:
            return WaitResult("failed", waited_s, num_requests, Readiness("failed", f"process {options.pid} has ended"))
        on_look(look, waited_s)
        left_s = begin_s + options.timeout_s - time.monotonic()
        if left_s <= 0:
            return WaitResult("timed out", waited_s, num_requests, look)
        time.sleep(min(options.interval_s, left_s))


def _is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and that its parent did not collect yet does not (proc(5))."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return not Path("/proc/self").exists() and _takes_signals(pid)
    except (OSError, IndexError):
        return _takes_signals(pid)
    return state not in ("Z", "X")


def _takes_signals(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
