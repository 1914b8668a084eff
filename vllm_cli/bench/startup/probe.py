"""Probes a starting server, as an orchestrator does, from a separate process.

The process runs this file as a script (`python -I -S probe.py`): standard library only. Each probe opens a
connection, and any HTTP response counts, because a server that answers 503 in time is alive. The process
reads its settings as one JSON line, probes until its standard input ends (also when the parent dies), then
writes its samples.
"""

import json
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from time import perf_counter_ns
from typing import Self

INTERVAL_S = 0.05
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class StartProbeSamples:
    """The probes of one start.

    The latency of a probe that was due while an earlier one still waited counts from its due time.
    """

    latencies_ns: list[int]
    num_refused: int
    """Refused connections."""
    num_lost: int
    """Probes without a response after an earlier one had a response: refused, reset, or timed out."""


class StartProbe:
    """Probes a server from `start` to `finish`; a context manager that kills the process at its end."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()

    def start(self, host: str, port: int) -> None:
        """Starts probing at once."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"host": host, "port": port, "interval_s": INTERVAL_S}).encode() + b"\n")
        self._process.stdin.flush()

    def finish(self) -> StartProbeSamples:
        """Ends probing and returns the samples."""
        answer, _ = self._process.communicate(timeout=2 * TIMEOUT_S)
        return StartProbeSamples(**json.loads(answer))


class _Prober:
    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._request = f"GET /health HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()
        self.latencies_ns: list[int] = []
        self.num_refused = 0
        self.num_lost = 0

    def run(self, is_over: threading.Event, interval_ns: int) -> None:
        due_ns = perf_counter_ns()
        while not is_over.wait(max(0, due_ns - perf_counter_ns()) / 1e9):
            sent_ns = perf_counter_ns()
            has_answered = self._probe()
            done_ns = perf_counter_ns()
            due_ns += interval_ns
            overdue_ns = []
            while due_ns < done_ns:
                overdue_ns.append(done_ns - due_ns)
                due_ns += interval_ns
            if has_answered:
                self.latencies_ns += [done_ns - sent_ns, *overdue_ns]
            elif self.latencies_ns:
                self.num_lost += 1

    def _probe(self) -> bool:
        try:
            with socket.create_connection(self._address, timeout=TIMEOUT_S) as connection:
                connection.sendall(self._request)
                answer = connection.recv(65536)
                while connection.recv(65536):
                    pass
                return answer.startswith(b"HTTP/")
        except ConnectionRefusedError:
            self.num_refused += 1
        except OSError:
            pass
        return False


def _await_end_of_input(is_over: threading.Event) -> None:
    sys.stdin.buffer.read()
    is_over.set()


def _main() -> None:
    sys.stdout.write("started\n")
    sys.stdout.flush()
    line = sys.stdin.buffer.readline()
    if not line:
        return
    settings = json.loads(line)
    is_over = threading.Event()
    threading.Thread(target=_await_end_of_input, args=[is_over], daemon=True, name="stdin").start()
    prober = _Prober(settings["host"], settings["port"])
    prober.run(is_over, int(settings["interval_s"] * 1e9))
    samples = StartProbeSamples(prober.latencies_ns, prober.num_refused, prober.num_lost)
    json.dump(asdict(samples), sys.stdout)


if __name__ == "__main__":
    _main()
