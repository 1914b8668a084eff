"""The probe process of the benchmarks, with real servers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil

from tests.support.http_server import Request, ScriptedServer, serving
from tests.support.waiting import is_gone, wait_until
from vllm_cli.bench import probe
from vllm_cli.bench.probe import HealthProbe, ProbeSamples

MS = 10**6


def health_server(delay_s: float = 0.0, *, num_answers: int | None = None) -> ScriptedServer:
    """A server that answers each request after the same time. After `num_answers`, it closes connections."""

    def decide(request: Request) -> Any:
        time.sleep(delay_s)
        if num_answers is not None and len(server.requests) > num_answers:
            return _close
        return (503 if request.path == "/health" else 404,)

    server = ScriptedServer(decide)
    return server


def _close(handler: Any) -> None:
    handler.close_connection = True


def probe_until(is_enough: Callable[[], object], url: str) -> ProbeSamples:
    with HealthProbe() as health:
        health.start(url)
        wait_until(is_enough)
        return health.finish()


def test_probes_are_sent_at_the_interval_and_none_is_faster_than_the_server():
    with serving(health_server(0.004)) as server:
        begin_s = time.monotonic()
        samples = probe_until(lambda: len(server.requests) > 7, server.url)
    assert (samples.num_refused, samples.num_lost) == (0, 0)
    most = (time.monotonic() - begin_s) / probe.INTERVAL_S + 2  # the first one is due at once
    assert 6 <= len(samples.latencies_ns) <= most
    num_overdue = len(samples.latencies_ns) - len(server.requests)  # due while another one was late
    assert sum(latency < 4 * MS for latency in samples.latencies_ns) <= num_overdue


def test_probes_that_were_due_while_the_server_was_blocked_count_from_their_due_times():
    with serving(health_server(0.51)) as server:
        samples = probe_until(lambda: len(server.requests) > 3, server.url)
    assert min(samples.latencies_ns) < max(samples.latencies_ns) - 200 * MS  # due at different times
    assert len(samples.latencies_ns) >= 20
    assert sum(latency >= 250 * MS for latency in samples.latencies_ns) >= len(samples.latencies_ns) // 3


def test_refused_connections_before_the_first_response_are_not_lost():
    samples = probe_until(lambda: True, "http://127.0.0.1:9")
    assert (samples.latencies_ns, samples.num_lost, samples.num_refused > 0) == ([], 0, True)


def test_the_probe_ends_when_its_parent_is_killed():
    code = """if True:
        import time
        from vllm_cli.bench.probe import HealthProbe
        health = HealthProbe()
        health.start("http://127.0.0.1:9")
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


def test_probes_without_a_response_after_the_first_one_are_lost():
    with serving(health_server(num_answers=2)) as server:
        samples = probe_until(lambda: len(server.requests) > 5, server.url)
    assert len(samples.latencies_ns) >= 2
    assert samples.num_lost >= 3
