"""Waits until a server is ready or has failed, or until the timeout."""

import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Final, Literal, NamedTuple

from base.json_depth import read_json
from base.lifecycle import GRAPHS_CAPTURED, GRAPHS_GIVEN_UP, GRAPHS_TOTAL, START_INFO
from base.machine.processes import is_alive
from startup.logs.formatters import escape_controls
from startup.port.probe_http import MODEL_STATE_HEADER
from startup.reports.timeline.live_line import draw_bar
from vllm_cli.client.server import ReceivedAnswer, ServerClient, amount
from vllm_cli.client.server_address import ServerAddress

State = Literal["ready", "starting", "absent", "failed"]

_MAX_BODY_BYTES: Final = 1 << 16
_MAX_METRICS_BYTES: Final = 16 << 20
_FAILED: Final = ("failed", "dead")
"""Values of `status` from a server that will never be ready."""
_NOT_YET: Final = (408, 425, 429)
"""HTTP statuses below 500 after which the server may still become ready."""
_OWN_METRICS: Final = "vllm_cli:"
_WANTS_CERTIFICATE: Final = ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE")
"""The alerts with which TLS 1.3 and 1.2 reject a client without a certificate."""


@dataclass(frozen=True)
class Readiness:
    """The result of one poll."""

    state: State
    """`absent`: no response. `failed`: the server will never be ready."""
    reason: str = ""
    phase: str | None = None
    progress: float | None = None
    """The completed share of the start, from 0 to 1."""
    eta_s: float | None = None
    status: str | None = None
    """The `status` that the server reports: `starting`, `draining`, `dead` or `stopped` (`--idle-stop`)."""
    is_late: bool = False
    """Whether the request timed out."""

    def describe_rest(self) -> str:
        """The progress bar and the remaining time, if known."""
        bar = f"  {draw_bar(self.progress)}" if self.progress is not None else ""
        return bar + (f"  about {self.eta_s:.1f} s left" if self.eta_s is not None else "")


def poll_readiness(address: ServerAddress, path: str, *, timeout_s: float) -> Readiness:
    """Sends one GET. Returns a failure as a result, and raises no error."""
    try:
        answer = ServerClient(address).request("GET", path, timeout_s=timeout_s, max_bytes=_MAX_BODY_BYTES)
    except ssl.SSLCertVerificationError as err:
        return Readiness("failed", f"its certificate is not trusted ({err.verify_message})")
    except TimeoutError:
        return Readiness("absent", f"no answer within {timeout_s:.3g} s", is_late=True)
    except HTTPException as err:
        return Readiness("absent", f"it does not speak HTTP ({type(err).__name__})")
    except OSError as err:
        if isinstance(err, ssl.SSLError) and err.reason in _WANTS_CERTIFICATE:
            return Readiness("failed", "it wants a certificate of its clients")
        return Readiness("absent", (err.strerror or str(err)).lower())
    return _read_answer(answer, address.path + path)


def _read_answer(answer: ReceivedAnswer, path: str) -> Readiness:
    if answer.status < 300:
        return Readiness("ready", status=answer.headers.get(MODEL_STATE_HEADER))
    if answer.status < 500 and answer.status not in _NOT_YET:
        reason = f"{path} answers {answer.status} {answer.reason}, so it does not report readiness"
        return Readiness("failed", reason)
    try:
        body = read_json(answer.content)
    except ValueError:
        body = None
    body = body if isinstance(body, dict) else {}
    error = body.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    status = _text(body.get("status"))
    return Readiness(
        "failed" if status in _FAILED else "starting",
        f"it answers {answer.status}" if (text := _text(message)) is None else text,
        _text(body.get("phase")),
        amount(body.get("progress"), most=1.0),
        amount(body.get("eta_s")),
        status,
    )


def _text(value: Any) -> str | None:
    return escape_controls(value) if isinstance(value, str) else None


class Graphs(NamedTuple):
    """How many CUDA graphs a server has captured, how many it has in all, and how many it has given up."""

    captured: int
    total: int
    given_up: int = 0

    def __str__(self) -> str:
        return f"{self.captured} of {self.total} CUDA graphs are captured"


def parse_graphs(metrics: str) -> Graphs | None:
    """The CUDA graphs in the text of `/metrics`, if some of them are not captured, else None."""
    counts: list[int] = []
    for name, *_ in (GRAPHS_CAPTURED, GRAPHS_TOTAL, GRAPHS_GIVEN_UP):
        samples = re.findall(_SAMPLE.format(name), metrics, re.MULTILINE)
        counts.append(int(sum(map(float, samples))))
    graphs = Graphs(*counts)
    return graphs if graphs.captured < graphs.total else None


INCOMPLETE: Final = "incomplete"
"""The status of a server that is ready, but does not capture all of its CUDA graphs."""
_SAMPLE: Final = r"^{}(?:\{{[^}}\n]*\}})? (\d{{1,15}}(?:\.\d+)?)$"


def _poll_graphs(address: ServerAddress, ready: Readiness, *, timeout_s: float) -> Readiness:
    """`ready`, unless the server still captures CUDA graphs, or does not report them yet."""
    try:
        answer = ServerClient(address).request("GET", "/metrics", timeout_s=timeout_s, max_bytes=_MAX_METRICS_BYTES)
    except (OSError, HTTPException) as err:
        return Readiness("starting", f"/metrics: {err}")
    metrics = answer.content.decode(errors="replace")
    graphs = parse_graphs(metrics)
    if graphs and graphs.given_up:
        return Readiness("failed", f"{graphs}, and {graphs.given_up} are given up; its log says why", status=INCOMPLETE)
    if graphs:
        return Readiness("starting", str(graphs), progress=graphs.captured / graphs.total)
    is_reported = START_INFO[0] in metrics or _OWN_METRICS not in metrics
    return ready if is_reported else Readiness("starting", "its CUDA graphs are not known yet")


_ANSWER_TIMEOUT_S: Final = 5.0
"""The timeout of one request. A server may not respond for a while during its imports."""
_LEAST_TIMEOUT_S: Final = 0.05

Ending = Literal["ready", "failed", "timed out"]


@dataclass(frozen=True, kw_only=True)
class WaitOptions:
    """The server to wait for, and how to poll it."""

    address: ServerAddress
    path: str
    timeout_s: float
    interval_s: float
    """Seconds between a response and the next request."""
    pid: int | None = None
    """The server's process. When it exits, the wait ends."""
    with_graphs: bool = False
    """Whether to wait until the server has captured its CUDA graphs, too."""


@dataclass(frozen=True)
class WaitResult:
    """How the wait ended."""

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
    """Polls until the server is ready. `on_poll` gets each result and the seconds since the beginning."""
    begin_s = time.monotonic()
    num_requests = 0
    last: Readiness | None = None
    while True:
        # Checked before the poll, because the process may exit after its last response.
        is_gone = options.pid is not None and not is_alive(options.pid)
        left_s = max(begin_s + options.timeout_s - time.monotonic(), _LEAST_TIMEOUT_S)
        result = poll_readiness(options.address, options.path, timeout_s=min(left_s, _ANSWER_TIMEOUT_S))
        if result.is_late and left_s < _ANSWER_TIMEOUT_S and last is not None:
            result = last  # the deadline has cut this request short, so its result says nothing
        if result.state == "ready" and options.with_graphs:
            result = _poll_graphs(options.address, result, timeout_s=_ANSWER_TIMEOUT_S)
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
