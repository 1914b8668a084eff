"""The probe process of `bench startup`."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

from tests.waiting import is_gone, wait_until
from vllm_cli.bench.startup.probe import INTERVAL_S, StartProbe, StartProbeSamples

MS = 10**6
ANSWER = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A listening port that passes each connection to `answer` and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        connection.recv(4096)
                        answer(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def probe(port: int, is_enough: Callable[[], object]) -> StartProbeSamples:
    with StartProbe() as prober:
        prober.start("127.0.0.1", port)
        wait_until(is_enough)
        return prober.finish()


def test_any_response_counts_with_its_latency() -> None:
    num_asked = 0

    def answer(connection: socket.socket) -> None:
        nonlocal num_asked
        num_asked += 1
        time.sleep(0.005)
        connection.sendall(ANSWER)

    begin_s = time.monotonic()
    with serving(answer) as port:
        samples = probe(port, lambda: num_asked > 12)
    assert (samples.num_refused, samples.num_lost) == (0, 0)
    assert 12 <= len(samples.latencies_ns) <= (time.monotonic() - begin_s) / INTERVAL_S + 2
    num_late = sum(latency > INTERVAL_S * 1e9 for latency in samples.latencies_ns)
    assert sum(latency < 5 * MS for latency in samples.latencies_ns) <= num_late, "what was due behind a late one"


def test_refused_connections_before_the_first_response_are_not_lost() -> None:
    begin_s = time.monotonic()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        samples = probe(unused.getsockname()[1], lambda: time.monotonic() - begin_s > 1.5)
    assert samples.latencies_ns == []
    assert samples.num_refused >= 1
    assert samples.num_lost == 0


def test_probes_without_a_response_after_the_first_one_are_lost() -> None:
    asked: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        asked.append(ANSWER if len(asked) < 2 else b"")
        connection.sendall(asked[-1])

    with serving(answer) as port:
        samples = probe(port, lambda: len(asked) > 8)
    assert len(samples.latencies_ns) >= 2
    assert samples.num_lost >= 6


def test_probes_that_were_due_while_the_server_was_blocked_count_from_their_due_times() -> None:
    num_answers = 0

    def answer(connection: socket.socket) -> None:
        nonlocal num_answers
        time.sleep(0.5)
        connection.sendall(ANSWER)
        num_answers += 1

    with serving(answer) as port:
        samples = probe(port, lambda: num_answers >= 2)
    assert len(samples.latencies_ns) >= 12
    assert sum(latency >= 250 * MS for latency in samples.latencies_ns) >= 5


def test_a_probe_that_was_never_started_leaves_no_process() -> None:
    with StartProbe() as prober:
        pid = prober._process.pid
    assert not psutil.pid_exists(pid)


def test_the_probe_ends_when_its_parent_is_killed() -> None:
    code = (
        "import time\n"
        "from vllm_cli.bench.startup.probe import StartProbe\n"
        "prober = StartProbe()\n"
        "prober.start('127.0.0.1', 9)\n"
        "print(prober._process.pid, flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid))
