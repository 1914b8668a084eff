"""Kills a server's engine, and times until clients see the failure and until the next engine serves."""

import http.client
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from statistics import median
from urllib.parse import urlsplit

import psutil

from vllm_cli.bench.config import TargetSpec
from vllm_cli.bench.target import CommandTarget, TargetStartError
from vllm_cli.client.running_servers import find_servers

_ANSWER_TIMEOUT_S = 60.0
_BODY = json.dumps({"prompt": "Hello", "max_tokens": 1})


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """One killed engine; all times count from SIGKILL."""

    unhealthy_ms: float
    """Until the first /health that is not 200."""
    ready_s: float
    """Until the next /health that is 200."""
    first_token_s: float
    """Until the answer of a request for one token."""


@dataclass(frozen=True, kw_only=True)
class FaultsResult:
    """All rounds, and the first start for comparison with the restarts."""

    command: str
    start_s: float
    """From the command's exec to the first /health that is 200."""
    rounds: list[Recovery]

    def to_json(self) -> str:
        """The result for a file."""
        return json.dumps(asdict(self), indent=2)

    def to_text(self) -> str:
        """The result for the terminal."""
        lines = [f"{self.command}: ready {self.start_s:.2f} s after exec", f"{len(self.rounds)} engines killed:"]
        for label, unit, values in (
            ("death -> /health 503", "ms", [r.unhealthy_ms for r in self.rounds]),
            ("death -> ready again", "s", [r.ready_s for r in self.rounds]),
            ("death -> one token", "s", [r.first_token_s for r in self.rounds]),
        ):
            lines.append(f"  {label}  {median(values):8.2f} {unit}  ({min(values):.2f}-{max(values):.2f})")
        ratio = median(r.ready_s for r in self.rounds) / self.start_s
        return "\n".join([*lines, f"  restart ÷ start       {ratio:8.2f}"])


def measure_recoveries(
    command: str, *, num_rounds: int, settle_s: float, ready_timeout_s: float, report_progress: Callable[[str], None]
) -> FaultsResult:
    """Starts the server, kills its engine once per round, and stops the server.

    Raises:
        CommandEndedError: the server exited.
        TargetStartError: it was not ready in time.
    """
    command = f"{command} --engine-restarts {num_rounds}"
    spec = TargetSpec(name="A", command=command)
    begin_s = time.perf_counter()
    with closing(CommandTarget(spec, command)) as target:
        target.start()
        client = _HealthClient(target, ready_timeout_s)
        start_s = client.wait_status(lambda status: status == 200) - begin_s
        rounds = []
        for number in range(1, num_rounds + 1):
            report_progress(f"round {number} of {num_rounds}")
            client.request_token()
            time.sleep(settle_s)
            rounds.append(client.kill_engine())
    return FaultsResult(command=command, start_s=start_s, rounds=rounds)


class _HealthClient:
    """Requests /health in a closed loop, on one connection until the server closes it."""

    def __init__(self, target: CommandTarget, ready_timeout_s: float) -> None:
        self._target = target
        self._ready_timeout_s = ready_timeout_s
        address = urlsplit(target.base_url)
        self._port = address.port or 0
        self._connection = http.client.HTTPConnection(address.hostname or "", self._port, timeout=_ANSWER_TIMEOUT_S)

    def kill_engine(self) -> Recovery:
        """One round."""
        engine_pid = self._find_engine()
        self._request_health()
        begin_s = time.perf_counter()
        os.kill(engine_pid, signal.SIGKILL)
        unhealthy_s = self.wait_status(lambda status: status != 200)
        ready_s = self.wait_status(lambda status: status == 200)
        self.request_token()
        return Recovery(
            unhealthy_ms=(unhealthy_s - begin_s) * 1e3,
            ready_s=ready_s - begin_s,
            first_token_s=time.perf_counter() - begin_s,
        )

    def wait_status(self, is_wanted: Callable[[int], bool]) -> float:
        """Waits for a /health response with a wanted status; returns its time on the perf_counter clock."""
        deadline_s = time.perf_counter() + self._ready_timeout_s
        while not is_wanted(self._request_health()):
            self._target.ensure_alive()
            if time.perf_counter() > deadline_s:
                raise TargetStartError(f"it was not ready after {self._ready_timeout_s:g} s\n{self._target.log_tail}")
            time.sleep(0.001)
        return time.perf_counter()

    def request_token(self) -> None:
        """Requests one token and ignores the status."""
        self._request("POST", "/v1/completions", _BODY)

    def _request_health(self) -> int:
        return self._request("GET", "/health")

    def _request(self, method: str, path: str, body: str | None = None) -> int:
        """The status; 0 without an answer."""
        try:
            self._connection.request(method, path, body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return 0
        return response.status

    def _find_engine(self) -> int:
        """The largest process below the server: the one that holds the weights."""
        server = next(s for s in find_servers(with_state=False) if s.port == self._port)
        sizes = {}
        for pid in server.pids[1:]:
            with suppress(psutil.NoSuchProcess):  # the helper processes of the start exit at about this time
                sizes[pid] = int(psutil.Process(pid).memory_info().rss)
        return max(sizes, key=lambda pid: sizes[pid])
