"""The probes of a start count what an orchestrator's probes would see."""

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

from vllm_cli.bench.startup_probe import INTERVAL_S, StartProbe, StartProbeSamples

MS = 10**6
ANSWER = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A listening port where each connection is handed to `answer`, then closed."""
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
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def probe(port: int, seconds: float) -> StartProbeSamples:
    with StartProbe() as prober:
        prober.begin("127.0.0.1", port)
        time.sleep(seconds)
        return prober.finish()


def test_any_answer_counts_and_comes_as_late_as_the_server_sends_it() -> None:
    def answer(connection: socket.socket) -> None:
        time.sleep(0.005)
        connection.sendall(ANSWER)

    with serving(answer) as port:
        samples = probe(port, 1.0)
    assert (samples.num_refused, samples.num_lost) == (0, 0)
    assert 10 <= len(samples.latencies_ns) <= 1.5 / INTERVAL_S
    assert min(samples.latencies_ns) >= 5 * MS


def test_connections_that_nobody_accepts_are_refused_but_not_lost() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        samples = probe(unused.getsockname()[1], 0.5)
    assert samples.latencies_ns == []
    assert samples.num_refused >= 5
    assert samples.num_lost == 0


def test_a_server_that_answered_once_must_go_on_answering() -> None:
    answers = [ANSWER, ANSWER]
    with serving(lambda connection: connection.sendall(answers.pop() if answers else b"")) as port:
        samples = probe(port, 0.6)
    assert len(samples.latencies_ns) == 2
    assert samples.num_lost >= 5


def test_probes_that_were_due_while_the_server_hung_count_from_when_they_were_due() -> None:
    def answer(connection: socket.socket) -> None:
        time.sleep(0.5)
        connection.sendall(ANSWER)

    with serving(answer) as port:
        samples = probe(port, 1.2)
    assert len(samples.latencies_ns) >= 12
    assert sum(latency >= 250 * MS for latency in samples.latencies_ns) >= 5


def test_a_probe_that_never_began_leaves_no_process() -> None:
    with StartProbe() as prober:
        pid = prober._process.pid
    assert not psutil.pid_exists(pid)


def test_the_probe_ends_when_its_parent_is_killed(wait_until) -> None:
    code = (
        "import time\n"
        "from vllm_cli.bench.startup_probe import StartProbe\n"
        "prober = StartProbe()\n"
        "prober.begin('127.0.0.1', 9)\n"
        "print(prober._process.pid, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid))
