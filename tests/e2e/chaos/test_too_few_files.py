"""File descriptors run out: probes are answered while there is one, and the loop does not spin."""

import http.client
import resource
import socket
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.clients import StreamReader
from tests.e2e.server_process import ServerProcess
from tests.waiting import wait_until

_FEW = 160
_ANSWER_S = 60.0
_PROBE = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def _connect(server: Any, stack: ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=_ANSWER_S))


def _probe(server: Any, stack: ExitStack) -> str:
    """The status line of a probe on a connection that stays open; `cut` if it was closed."""
    client = _connect(server, stack)
    try:
        client.sendall(_PROBE)
        return client.recv(1 << 16).split(b"\r\n")[0].decode() or "cut"
    except ConnectionError:
        return "cut"


def _files(process: psutil.Process) -> set[int]:
    return {int(path.name) for path in Path(f"/proc/{process.pid}/fd").iterdir()}


def _allow(process: psutil.Process, num_files: int) -> None:
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (num_files, hard))


def test_start_with_too_few_files_names_the_needed_number(model_path):
    with ServerProcess([str(model_path)], launcher=("prlimit", "--nofile=64:80"), wait=False) as server:
        assert server.process.wait(_ANSWER_S) == 3
        assert (
            "64 open files are allowed, a start needs 96: `ulimit -n` goes up to 80 here; raise that with" in server.log
        )


@pytest.mark.slow
def test_probes_are_answered_and_streams_finish_while_clients_use_up_all_files(model_path):
    launcher = ("prlimit", f"--nofile={_FEW}:{_FEW}")
    words = [str(model_path), "--http-header-timeout", "600", "--disable-uvicorn-access-log"]
    lasting = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600"}
    with ServerProcess(words, launcher=launcher, environment=lasting) as server, ExitStack() as stack:
        assert f"{_FEW} open files are allowed, and every client needs one: `ulimit -n` goes up to {_FEW}" in server.log
        api = psutil.Process(server.process.pid)
        readers = [StreamReader(server.url, 40) for _ in range(20)]
        for _ in range(3 * _FEW):
            _connect(server, stack)
        probes = Counter(_probe(server, stack) for _ in range(_FEW))
        assert probes == {"HTTP/1.1 200 OK": _FEW}
        for reader in readers:
            assert reader.finish()[-1] is None

        # Fewer than at the start: idle connections are closed as soon as files are scarce.
        _allow(api, max(_files(api)) + 8)
        probes = Counter(_probe(server, stack) for _ in range(_FEW))
        assert probes == {"HTTP/1.1 200 OK": _FEW}
        assert server.log.count("file descriptors of this process are in use") == 1

        # None at all: open connections are served, new ones are cut, and the loop does not spin.
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_ANSWER_S)
        kept.request("GET", "/health")
        assert kept.getresponse().read() == b""
        files = _files(api)
        _allow(api, min(set(range(max(files) + 2)) - files))
        num_chars = len(server.log)
        assert Counter(_probe(server, stack) for _ in range(_FEW)) == {"cut": _FEW}
        num_sleeps = api.num_ctx_switches().voluntary
        kept.request("GET", "/health")
        assert kept.getresponse().status == 200
        kept.close()
        wait_until(lambda: api.num_ctx_switches().voluntary >= num_sleeps + 50)  # a spinning loop never sleeps
        assert len(server.log) - num_chars < 1000

        _allow(api, _FEW)
        wait_until(lambda: server.health() == 200)
        assert server.complete(max_tokens=4) == 200
        assert server.terminate() == 0
        assert "Traceback" not in server.log


@pytest.mark.slow
def test_probes_during_the_start_are_answered_with_any_number_of_connections(model_path):
    launcher = ("prlimit", f"--nofile={_FEW}:{_FEW}")
    with ServerProcess([str(model_path)], launcher=launcher, wait=False) as server, ExitStack() as stack:
        server.wait_listening()
        for _ in range(3 * _FEW):
            _connect(server, stack)
        answers = {_probe(server, stack) for _ in range(3 * _FEW)}
        assert answers <= {"HTTP/1.1 503 Service Unavailable", "HTTP/1.1 200 OK"}
        server.wait_ready()
        assert server.complete(max_tokens=4) == 200
