"""Probes `/health` of a server that starts or is under load, from a separate process.

The process runs this file as a script (`python -I -S probe.py`) with the standard library only, so that
imports and other work of the benchmark delay no probe. It reads the port as one line, and probes until
its standard input ends, which also happens when the parent dies. Then it writes its samples.
"""

import json
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field
from time import perf_counter_ns
from typing import Self
from urllib.parse import urlsplit

INTERVAL_S = 0.05
TIMEOUT_S = 10.0
_REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass
class ProbeSamples:
    """The probes of one round or start.

    The latency of a probe counts from its due time, even if an earlier probe delays it. So if a server blocks
    for a second, all probes that were due in that second are slow, not only one.
    """

    latencies_ns: list[int] = field(default_factory=list)
    num_refused: int = 0
    num_lost: int = 0
    """Probes that failed (refused, reset, timed out) after an earlier probe had succeeded."""


class HealthProbe:
    """Probes `/health` from `start` to `finish`. At the end of the block, kills the probing process.

    Each probe opens a connection. Any HTTP response counts, even a 503.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._wait_for_line()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()

    def start(self, base_url: str) -> None:
        """Starts probing a server on this machine. Returns when the first probe is about to be sent."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{urlsplit(base_url).port}\n".encode())
        self._process.stdin.flush()
        self._wait_for_line()

    def finish(self) -> ProbeSamples:
        answer, _ = self._process.communicate(timeout=2 * TIMEOUT_S)
        return ProbeSamples(**json.loads(answer))

    def _wait_for_line(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.readline()


def _probe(port: int) -> bool:
    """Sends one probe. Returns whether it got a response. Raises ConnectionRefusedError if no server listens.

    The end of the connection is the end of the response.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
            connection.sendall(_REQUEST)
            with connection.makefile("rb") as answer:
                return answer.read().startswith(b"HTTP/1.")
    except ConnectionRefusedError:
        raise
    except OSError:
        return False


def _probe_until(is_over: threading.Event, port: int, interval_ns: int) -> ProbeSamples:
    """Sends one probe at least, even if the round is over before this process runs."""
    samples = ProbeSamples()
    due_ns = perf_counter_ns()
    while True:
        sent_ns = perf_counter_ns()
        has_answered = False
        try:
            has_answered = _probe(port)
        except ConnectionRefusedError:
            samples.num_refused += 1
        done_ns = perf_counter_ns()
        overdue_ns = range(due_ns + interval_ns, done_ns, interval_ns)
        if has_answered:
            samples.latencies_ns.extend([done_ns - sent_ns, *(done_ns - late_ns for late_ns in overdue_ns)])
        else:
            samples.num_lost += bool(samples.latencies_ns)
        due_ns += interval_ns * (1 + len(overdue_ns))
        if is_over.wait(max(0, due_ns - perf_counter_ns()) / 1e9):
            return samples


def _await_end_of_input(is_over: threading.Event) -> None:
    sys.stdin.buffer.read()
    is_over.set()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _main() -> None:
    _say("started")
    line = sys.stdin.buffer.readline()
    if not line:  # the parent has closed the pipe or died
        return
    is_over = threading.Event()
    threading.Thread(target=_await_end_of_input, args=[is_over], daemon=True, name="stdin").start()
    _say("probing")
    samples = _probe_until(is_over, int(line), int(INTERVAL_S * 1e9))
    json.dump(asdict(samples), sys.stdout)


if __name__ == "__main__":
    _main()
