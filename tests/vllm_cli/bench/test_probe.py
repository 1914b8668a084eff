"""The probe process of the benchmarks, against real servers."""

import itertools
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
import pytest

from tests.http_server import LocalServer, QuietHandler, serving
from tests.waiting import is_gone, wait_until
from vllm_cli.bench import probe
from vllm_cli.bench.probe import HealthProbe, ProbeSamples

MS = 10**6


class HealthServer(LocalServer):
    """Answers each request after the same time and counts them; the first precedes the measurement."""

    def __init__(self, delay_s: float = 0.0) -> None:
        super().__init__(HealthHandler)
        self.delay_s = delay_s
        self.num_asked = 0


class HealthHandler(QuietHandler):
    protocol_version = "HTTP/1.1"
    server: HealthServer

    def do_GET(self) -> None:
        self.server.num_asked += 1
        time.sleep(self.server.delay_s)
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()


def probe_until(is_enough: Callable[[], object], url: str, api_key: str | None = None) -> ProbeSamples:
    with HealthProbe(api_key) as health:
        health.start(url)
        wait_until(is_enough)
        return health.finish()


def probe_for(seconds: float, url: str) -> ProbeSamples:
    end_s = time.monotonic() + seconds
    return probe_until(lambda: time.monotonic() > end_s, url)


def most_probes(begin_s: float) -> float:
    """The number of probes due since then; the first one is due at once."""
    return (time.monotonic() - begin_s) / probe.INTERVAL_S + 2


def test_probes_are_sent_at_the_interval_and_none_is_faster_than_the_server():
    with serving(HealthServer(0.004)) as server:
        begin_s = time.monotonic()
        samples = probe_until(lambda: server.num_asked > 21, server.url)
    assert samples.num_errors == 0
    assert 20 <= len(samples.latencies_ns) <= most_probes(begin_s)
    num_late = sum(latency > probe.INTERVAL_S * 1e9 for latency in samples.latencies_ns)
    assert sum(latency < 4 * MS for latency in samples.latencies_ns) <= num_late, "what was due behind a late one"


def test_probes_that_were_due_while_the_server_was_blocked_count_from_their_due_times():
    with serving(HealthServer(0.21)) as server:
        samples = probe_until(lambda: server.num_asked > 4, server.url)
    assert min(samples.latencies_ns) < 60 * MS
    assert len(samples.latencies_ns) >= 20
    assert sum(latency >= 100 * MS for latency in samples.latencies_ns) >= len(samples.latencies_ns) // 3


def test_samples_hold_due_times_and_the_delays_of_wake_ups():
    begin_ns = time.perf_counter_ns()
    with serving(HealthServer(0.05)) as server:
        samples = probe_until(lambda: server.num_asked > 4, server.url)
    assert len(samples.due_ns) == len(samples.latencies_ns) > len(samples.wakes_ns) >= 3
    assert begin_ns < samples.due_ns[0]
    assert {later - earlier for earlier, later in itertools.pairwise(samples.due_ns)} == {20 * MS}
    assert all(late_ns >= 0 for _, late_ns in samples.wakes_ns)
    assert {due_ns for due_ns, _ in samples.wakes_ns} <= set(samples.due_ns)


def test_samples_record_whether_the_process_had_real_time_priority(tiny_server):
    server = tiny_server()
    assert not probe_for(0.1, server.url).is_realtime
    with HealthProbe(wants_realtime=True) as health:
        health.start(server.url)
        policy = os.sched_getscheduler(health._process.pid)
        assert health.finish().is_realtime == (policy == os.SCHED_FIFO)


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_bodies_are_read_to_their_end(is_chunked):
    body = b"4\r\nfine\r\n0\r\n\r\n" if is_chunked else b"fine"
    header = ("Transfer-Encoding", "chunked") if is_chunked else ("Content-Length", "4")
    asked: list[str | None] = []

    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            self.send_response(200)
            self.send_header(*header)
            self.end_headers()
            self.wfile.write(body)

    with serving(LocalServer(Handler)) as server:
        samples = probe_until(lambda: len(asked) > 6, server.url, api_key="sesame")
    assert samples.num_errors == 0
    assert len(samples.latencies_ns) >= 5
    assert set(asked) == {"Bearer sesame"}


def test_an_address_without_a_server_gives_errors_only():
    samples = probe_for(1.0, "http://127.0.0.1:9")
    assert samples.latencies_ns == []
    assert samples.num_errors >= 1


def test_a_missing_route_is_an_error():
    with serving(HealthServer()) as server:
        samples = probe_until(lambda: server.num_asked > 4, server.url + "/nowhere")
    assert samples.latencies_ns == []
    assert samples.num_errors >= 3


def test_the_probe_ends_when_its_parent_is_killed(tiny_server):
    code = f"""if True:
        import time
        from vllm_cli.bench.probe import HealthProbe, ProbeSamples
        health = HealthProbe()
        health.start({tiny_server().url!r})
        print(health._process.pid, flush=True)
        time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        os.kill(parent.pid, signal.SIGKILL)
    wait_until(lambda: is_gone(child))


def test_the_probe_process_imports_only_the_standard_library():
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, probe.__file__], capture_output=True, text=True)
    assert done.stderr == ""
    assert set(done.stdout.split()) <= sys.stdlib_module_names | {"__main__"}


ANSWER = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[int]:
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


def probe_start(port: int, is_enough: Callable[[], object]) -> ProbeSamples:
    """Probes a server that starts: any response counts."""
    with HealthProbe(is_starting=True) as health:
        health.start(f"http://127.0.0.1:{port}")
        wait_until(is_enough)
        return health.finish()


def test_any_response_of_a_starting_server_counts_with_its_latency() -> None:
    num_asked = 0

    def answer(connection: socket.socket) -> None:
        nonlocal num_asked
        num_asked += 1
        time.sleep(0.005)
        connection.sendall(ANSWER)

    begin_s = time.monotonic()
    with answering(answer) as port:
        samples = probe_start(port, lambda: num_asked > 12)
    assert (samples.num_refused, samples.num_lost) == (0, 0)
    assert 12 <= len(samples.latencies_ns) <= (time.monotonic() - begin_s) / probe.STARTING_INTERVAL_S + 2
    num_late = sum(latency > probe.STARTING_INTERVAL_S * 1e9 for latency in samples.latencies_ns)
    assert sum(latency < 5 * MS for latency in samples.latencies_ns) <= num_late, "what was due behind a late one"


def test_refused_connections_before_the_first_response_are_not_lost() -> None:
    begin_s = time.monotonic()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        samples = probe_start(unused.getsockname()[1], lambda: time.monotonic() - begin_s > 1.5)
    assert samples.latencies_ns == []
    assert samples.num_refused >= 1
    assert samples.num_lost == 0


def test_probes_without_a_response_after_the_first_one_are_lost() -> None:
    asked: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        asked.append(ANSWER if len(asked) < 2 else b"")
        connection.sendall(asked[-1])

    with answering(answer) as port:
        samples = probe_start(port, lambda: len(asked) > 8)
    assert len(samples.latencies_ns) >= 2
    assert samples.num_lost >= 6


def test_a_probe_that_was_never_started_leaves_no_process() -> None:
    with HealthProbe() as prober:
        pid = prober._process.pid
    assert not psutil.pid_exists(pid)
