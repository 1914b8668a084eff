import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from vllm_cli.bench import probe
from vllm_cli.bench.probe import HealthProbe

MS = 10**6


def probe_for(url: str, seconds: float, api_key: str | None = None):
    with HealthProbe(url, api_key) as health:
        health.start()
        time.sleep(seconds)
        return health.finish()


def test_probes_are_sent_steadily_and_none_is_faster_than_the_server(tiny_server):
    server = tiny_server("--health-ms", 4)
    samples = probe_for(server.url, 1.0)
    assert samples.num_errors == 0
    assert 20 <= len(samples.latencies_ns) <= 60
    assert min(samples.latencies_ns) >= 4 * MS


def test_probes_that_were_due_while_the_server_hung_count_from_when_they_were_due(tiny_server):
    server = tiny_server("--health-ms", 210)
    samples = probe_for(server.url, 1.2)
    assert min(samples.latencies_ns) < 60 * MS
    assert len(samples.latencies_ns) >= 20
    assert sum(latency >= 100 * MS for latency in samples.latencies_ns) >= len(samples.latencies_ns) // 3


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_bodies_of_any_kind_are_read_to_their_end(is_chunked):
    body = b"4\r\nfine\r\n0\r\n\r\n" if is_chunked else b"fine"
    header = ("Transfer-Encoding", "chunked") if is_chunked else ("Content-Length", "4")
    asked: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            self.send_response(200)
            self.send_header(*header)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        samples = probe_for(f"http://127.0.0.1:{server.server_port}", 0.5, api_key="sesame")
        server.shutdown()
        thread.join()
    assert samples.num_errors == 0
    assert len(samples.latencies_ns) >= 5
    assert set(asked) == {"Bearer sesame"}


def test_an_address_without_a_server_gives_errors_only():
    samples = probe_for("http://127.0.0.1:9", 0.3)
    assert samples.latencies_ns == []
    assert samples.num_errors >= 3


def test_a_page_that_is_missing_is_an_error(tiny_server):
    samples = probe_for(tiny_server().url + "/nowhere", 0.3)
    assert samples.latencies_ns == []
    assert samples.num_errors >= 3


def test_the_probe_ends_when_its_parent_is_killed(tiny_server, wait_until):
    code = f"""if True:
        import time
        from vllm_cli.bench.probe import HealthProbe
        health = HealthProbe({tiny_server().url!r})
        health.start()
        print(health._process.pid, flush=True)
        time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        os.kill(parent.pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def test_the_probes_process_imports_the_standard_library_only():
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, probe.__file__], capture_output=True, text=True)
    assert done.stderr == ""
    assert set(done.stdout.split()) <= sys.stdlib_module_names | {"__main__"}
