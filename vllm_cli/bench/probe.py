"""Probes `/health` of a server that starts or is under load, from a separate process.

The process runs this file as a script (`python -I -S probe.py`) with the standard library only, so that the
load generator and imports delay no probe. The process reads its settings as one JSON line. It probes until
its standard input ends, which also happens when the parent dies. Then it writes its samples.
"""

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field
from time import perf_counter_ns
from typing import Self
from urllib.parse import urlsplit

INTERVAL_S = 0.02
STARTING_INTERVAL_S = 0.05
TIMEOUT_S = 10.0


@dataclass
class ProbeSamples:
    """The probes of one round or start.

    The latency of a probe counts from its due time, even if an earlier probe delays it. So if a server blocks
    for a second, all probes that were due in that second are slow, not only one.
    """

    latencies_ns: list[int] = field(default_factory=list)
    num_errors: int = 0
    """Probes without the wanted response."""
    num_refused: int = 0
    num_lost: int = 0
    """Probes that failed (refused, reset, timed out) after an earlier probe had succeeded."""


class HealthProbe:
    """Probes `/health` from `start` to `finish`. At the end of the block, kills the probing process."""

    def __init__(self, api_key: str | None = None, *, is_starting: bool = False) -> None:
        """With `is_starting`, each probe opens a connection, and any HTTP response counts, even a 503.

        Otherwise all probes share a connection, and only status 200 counts.
        """
        self._settings = {"api_key": api_key, "is_starting": is_starting}
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
        """Starts probing. Returns when the process is about to send its first probe."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**self._settings, "url": f"{base_url}/health"}).encode() + b"\n")
        self._process.stdin.flush()
        self._wait_for_line()

    def finish(self) -> ProbeSamples:
        answer, _ = self._process.communicate(timeout=2 * TIMEOUT_S)
        return ProbeSamples(**json.loads(answer))

    def _wait_for_line(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.readline()


class _Client:
    """Sends the same request repeatedly, on one connection or on a new one each time.

    It parses answers itself, because `http.client` takes 0.2 ms per answer, as long as a server takes.
    """

    def __init__(self, url: str, api_key: str | None, *, is_starting: bool) -> None:
        parts = urlsplit(url)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._address = (parts.hostname or "localhost", parts.port or (443 if self._tls else 80))
        authorization = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{authorization}\r\n".encode()
        self._is_starting = is_starting
        self._socket: socket.socket | None = None

    def probe(self) -> bool:
        """Sends one probe. Returns whether it got status 200, or with `is_starting`, any complete response.

        Raises:
            ConnectionRefusedError: no server listens.
        """
        try:
            self._socket = self._socket or self._connect()
            self._socket.sendall(self._request)
            status = self._read_answer(self._socket)
        except ConnectionRefusedError:
            raise
        except (OSError, ValueError, IndexError):
            self.close()
            return False
        if self._is_starting:
            self.close()
        return self._is_starting or status == 200

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        plain = socket.create_connection(self._address, timeout=TIMEOUT_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._tls.wrap_socket(plain, server_hostname=self._address[0]) if self._tls else plain

    def _read_answer(self, connection: socket.socket) -> int:
        """Reads an answer and returns its status. Closes the connection if the answer has no length."""
        headers: dict[bytes, bytes] = {}
        with connection.makefile("rb") as answer:
            status = int(answer.readline().split()[1])
            while line := answer.readline().strip().lower():
                name, _, value = line.partition(b":")
                headers[name] = value.strip()
            answer.read(int(headers.get(b"content-length", b"0")))
        if b"content-length" not in headers or headers.get(b"connection") == b"close":
            self.close()
        return status


def _probe_until(is_over: threading.Event, client: _Client, interval_ns: int) -> ProbeSamples:
    """Sends one probe at least, even if the round is over before this process runs."""
    samples = ProbeSamples()
    due_ns = perf_counter_ns()
    while True:
        sent_ns = perf_counter_ns()
        has_answered = False
        try:
            has_answered = client.probe()
        except ConnectionRefusedError:
            samples.num_refused += 1
        done_ns = perf_counter_ns()
        overdue_ns = range(due_ns + interval_ns, done_ns, interval_ns)
        if has_answered:
            samples.latencies_ns.extend([done_ns - sent_ns, *(done_ns - late_ns for late_ns in overdue_ns)])
        else:
            samples.num_errors += 1
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
    settings = json.loads(line)
    is_starting = settings["is_starting"]
    client = _Client(settings["url"], settings["api_key"], is_starting=is_starting)
    if not is_starting:
        with contextlib.suppress(ConnectionRefusedError):
            client.probe()
    is_over = threading.Event()
    threading.Thread(target=_await_end_of_input, args=[is_over], daemon=True, name="stdin").start()
    _say("probing")
    samples = _probe_until(is_over, client, int((STARTING_INTERVAL_S if is_starting else INTERVAL_S) * 1e9))
    client.close()
    json.dump(asdict(samples), sys.stdout)


if __name__ == "__main__":
    _main()
