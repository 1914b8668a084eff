"""Probes `/health` of a server that starts or is under load, from a separate process.

The process runs this file as a script (`python -I -S probe.py`), standard library only, so that neither the
load generator nor an import delays a probe. It reads its settings as one JSON line, probes until its standard
input ends (also when the parent dies), then writes its samples.
"""

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field
from time import perf_counter_ns
from typing import Any, Self
from urllib.parse import urlsplit

INTERVAL_S = 0.02
STARTING_INTERVAL_S = 0.05
TIMEOUT_S = 10.0


@dataclass
class ProbeSamples:
    """The probes of one round or start.

    The latency of a probe that was due while an earlier one still waited counts from its due time: a server
    that blocks for a second delays all probes that were due in that second, not one.
    """

    latencies_ns: list[int] = field(default_factory=list)
    num_errors: int = 0
    """Probes without the wanted response."""
    due_ns: list[int] = field(default_factory=list)
    """Due times of the answered probes, as `perf_counter_ns`, a clock that all processes share on Linux."""
    wakes_ns: list[tuple[int, int]] = field(default_factory=list)
    """Each due time of a wake-up and its delay, which is the machine's and not the server's."""
    is_realtime: bool = False
    """Whether the process had real-time priority, so that its own delay is close to 0."""
    num_refused: int = 0
    """Refused connections."""
    num_lost: int = 0
    """Probes without the wanted response after an earlier one had it: refused, reset, or timed out."""


class HealthProbe:
    """Probes from `start` to `finish`; a context manager that kills the process at its end."""

    def __init__(self, api_key: str | None = None, *, is_starting: bool = False, wants_realtime: bool = False) -> None:
        """
        Args:
            api_key: the key to send.
            is_starting: whether each probe opens a connection and any HTTP response counts, because a server
                that answers 503 in time is alive. Otherwise probes share a connection, and only 200 counts.
            wants_realtime: whether to take real-time priority, if this user may.
        """
        self._settings: dict[str, Any] = {
            "api_key": api_key,
            "is_starting": is_starting,
            "interval_s": STARTING_INTERVAL_S if is_starting else INTERVAL_S,
            "wants_realtime": wants_realtime,
        }
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
        """Starts probing; returns when the process is about to send its first probe."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**self._settings, "url": f"{base_url}/health"}).encode() + b"\n")
        self._process.stdin.flush()
        self._wait_for_line()

    def finish(self) -> ProbeSamples:
        """Ends probing and returns the samples."""
        answer, _ = self._process.communicate(timeout=2 * TIMEOUT_S)
        return ProbeSamples(**json.loads(answer))

    def _wait_for_line(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.readline()


class _Client:
    """Sends the same request repeatedly, on one connection or on a new one each time."""

    def __init__(self, url: str, api_key: str | None, *, is_starting: bool) -> None:
        self._is_starting = is_starting
        parts = urlsplit(url)
        self._is_tls = parts.scheme == "https"
        self._host = parts.hostname or "localhost"
        self._port = parts.port or (443 if self._is_tls else 80)
        authorization = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        closing = "Connection: close\r\n" if is_starting else ""
        head = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{authorization}{closing}"
        self._request = f"{head}\r\n".encode()
        self._socket: socket.socket | None = None

    def probe(self) -> bool:
        """True for a complete response, with status 200 unless the server starts.

        Raises:
            ConnectionRefusedError: no server listens.
        """
        try:
            self._socket = self._socket or self._connect()
            self._socket.sendall(self._request)
            status = self._read_answer(self._socket)
            if self._is_starting:
                self.close()
            return self._is_starting or status == 200
        except ConnectionRefusedError:
            raise
        except (OSError, ValueError, IndexError):
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

    def _read_answer(self, connection: socket.socket) -> int:
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
        return int(status_line.split()[1])

    @staticmethod
    def _receive(connection: socket.socket) -> bytes:
        data = connection.recv(65536)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        return data


def _probe_until(is_over: threading.Event, client: _Client, interval_ns: int) -> ProbeSamples:
    samples = ProbeSamples()
    due_ns = perf_counter_ns()
    while not is_over.wait(max(0, due_ns - perf_counter_ns()) / 1e9):
        sent_ns = perf_counter_ns()
        has_answered = False
        try:
            has_answered = client.probe()
        except ConnectionRefusedError:
            samples.num_refused += 1
        done_ns = perf_counter_ns()
        overdue_ns = range(due_ns + interval_ns, done_ns, interval_ns)
        samples.wakes_ns.append((due_ns, sent_ns - due_ns))
        if has_answered:
            samples.latencies_ns.extend([done_ns - sent_ns, *(done_ns - late_ns for late_ns in overdue_ns)])
            samples.due_ns.extend([due_ns, *overdue_ns])
        else:
            samples.num_errors += 1
            samples.num_lost += bool(samples.latencies_ns)
        due_ns += interval_ns * (1 + len(overdue_ns))
    return samples


def _set_realtime_priority() -> bool:
    """Needs root. A nice value instead makes no difference to a process that mostly sleeps."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except (AttributeError, OSError):
        return False
    return True


def _await_end_of_input(is_over: threading.Event) -> None:
    sys.stdin.buffer.read()
    is_over.set()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _main() -> None:
    _say("started")
    line = sys.stdin.buffer.readline()
    if not line:  # the parent has ended
        return
    settings = json.loads(line)
    client = _Client(settings["url"], settings["api_key"], is_starting=settings["is_starting"])
    if not settings["is_starting"]:
        with contextlib.suppress(ConnectionRefusedError):
            client.probe()
    is_realtime = settings["wants_realtime"] and _set_realtime_priority()
    is_over = threading.Event()
    threading.Thread(target=_await_end_of_input, args=[is_over], daemon=True, name="stdin").start()
    _say("probing")
    samples = _probe_until(is_over, client, int(settings["interval_s"] * 1e9))
    client.close()
    samples.is_realtime = is_realtime
    json.dump(asdict(samples), sys.stdout)


if __name__ == "__main__":
    _main()
