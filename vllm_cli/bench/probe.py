"""Measures how fast `/health` answers while a server is under load, from a process of its own.

The process runs this very file (`python -I -S probe.py`), so that neither the load generator nor an import can delay
a probe: standard library only. It reads its orders as one JSON line, probes until its standard input ends (which it
also does when the parent dies), then writes its samples.
"""

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter_ns
from typing import Self
from urllib.parse import urlsplit

INTERVAL_S = 0.02
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class ProbeSamples:
    """What the probes of one round saw.

    A probe that was due while an earlier one still hung counts from when it was due: a server that blocks for a
    second is seen as late by all who would have asked in that second, not by one.
    """

    latencies_ns: list[int]
    num_errors: int
    due_ns: list[int] = field(default_factory=list)
    """When each of the answered probes was due, as `perf_counter_ns`, which all processes share on Linux."""
    wakes_ns: list[tuple[int, int]] = field(default_factory=list)
    """Each time that the process was to wake up, and how late it did: the machine's delay, not the server's."""
    is_realtime: bool = False
    """Whether the process went before all others, so that next to nothing of a latency is its own."""


class HealthProbe:
    """Probes a server's `/health` from `start` to `finish`; a context manager that leaves no process."""

    def __init__(self, base_url: str, api_key: str | None = None, *, wants_realtime: bool = False) -> None:
        self._orders = {
            "url": base_url + "/health",
            "api_key": api_key,
            "interval_s": INTERVAL_S,
            "wants_realtime": wants_realtime,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()

    def start(self) -> None:
        """Begin to probe; returns when the process is about to send its first one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(self._orders).encode() + b"\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def finish(self) -> ProbeSamples:
        """End probing and collect what was measured."""
        answer, _ = self._process.communicate(timeout=2 * TIMEOUT_S)
        return ProbeSamples(**json.loads(answer))


class _Connection:
    """One keep-alive connection that asks for the same page again and again."""

    def __init__(self, url: str, api_key: str | None) -> None:
        parts = urlsplit(url)
        self._is_tls = parts.scheme == "https"
        self._host = parts.hostname or "localhost"
        self._port = parts.port or (443 if self._is_tls else 80)
        authorization = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{authorization}\r\n".encode()
        self._socket: socket.socket | None = None

    def ask(self) -> bool:
        """True for a complete answer with status 200."""
        try:
            self._socket = self._socket or self._connect()
            self._socket.sendall(self._request)
            return self._read_answer(self._socket)
        except (OSError, ValueError):
            self.close()
            return False

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        plain = socket.create_connection((self._host, self._port), timeout=TIMEOUT_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return ssl.create_default_context().wrap_socket(plain, server_hostname=self._host) if self._is_tls else plain

    def _read_answer(self, connection: socket.socket) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._receive(connection)
        head, _, body = data.partition(b"\r\n\r\n")
        status_line, *fields = head.lower().split(b"\r\n")
        headers = {name.strip(): value.strip() for name, _, value in (field.partition(b":") for field in fields)}
        if headers.get(b"transfer-encoding") == b"chunked":
            while not body.endswith(b"0\r\n\r\n"):
                body += self._receive(connection)
        else:
            remaining = int(headers.get(b"content-length", b"0")) - len(body)
            while remaining > 0:
                remaining -= len(self._receive(connection))
        if headers.get(b"connection") == b"close" or status_line.startswith(b"http/1.0"):
            self.close()
        return status_line.split()[1] == b"200"

    @staticmethod
    def _receive(connection: socket.socket) -> bytes:
        data = connection.recv(65536)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        return data


def _probe_until(is_over: threading.Event, connection: _Connection, interval_ns: int) -> ProbeSamples:
    samples = ProbeSamples([], 0)
    num_errors = 0
    due_ns = perf_counter_ns()
    while not is_over.wait(max(0, due_ns - perf_counter_ns()) / 1e9):
        sent_ns = perf_counter_ns()
        is_healthy = connection.ask()
        done_ns = perf_counter_ns()
        overdue_ns = range(due_ns + interval_ns, done_ns, interval_ns)
        samples.wakes_ns.append((due_ns, sent_ns - due_ns))
        if is_healthy:
            samples.latencies_ns.extend([done_ns - sent_ns, *(done_ns - late_ns for late_ns in overdue_ns)])
            samples.due_ns.extend([due_ns, *overdue_ns])
        else:
            num_errors += 1
        due_ns += interval_ns * (1 + len(overdue_ns))
    return replace(samples, num_errors=num_errors)


def _go_first() -> bool:
    """Take real-time priority, which root may; a nice value makes no difference to a process that mostly sleeps."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except (AttributeError, OSError):
        return False
    return True


def _await_end_of_input(is_over: threading.Event) -> None:
    sys.stdin.buffer.read()
    is_over.set()


def _main() -> None:
    orders = json.loads(sys.stdin.buffer.readline())
    connection = _Connection(orders["url"], orders["api_key"])
    connection.ask()
    is_realtime = orders["wants_realtime"] and _go_first()
    is_over = threading.Event()
    threading.Thread(target=_await_end_of_input, args=[is_over], daemon=True, name="stdin").start()
    sys.stdout.write("probing\n")
    sys.stdout.flush()
    samples = _probe_until(is_over, connection, int(orders["interval_s"] * 1e9))
    connection.close()
    json.dump(asdict(replace(samples, is_realtime=is_realtime)), sys.stdout)


if __name__ == "__main__":
    _main()
