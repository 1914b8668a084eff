"""Engines that die or hang: clients and probes get errors, and a configured restart replaces the engine."""

import ctypes
import errno
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from envs.registry import START_METHODS
from tests.e2e.process_tree import wait_process
from tests.e2e.stop_point import ENGINE_LOADS, StopPoint, stop_environment
from tests.e2e.stream_reader import StreamReader
from tests.waiting import wait_until

_GONE_S = 120.0
_PIDFD_GETFD = 438
"""Number of the system call, the same on all architectures; the standard library has no function for it."""


def _probe(server: Any, path: str = "/health") -> tuple[int, dict[str, Any], dict[str, str]]:
    try:
        with urllib.request.urlopen(server.url + path, timeout=60) as response:
            return int(response.status), {}, dict(response.headers)
    except urllib.error.HTTPError as err:
        return err.code, json.loads(err.read()), dict(err.headers)


@contextmanager
def _hold_sockets(pid: int) -> Iterator[None]:
    """Keeps a process's sockets open after its exit, as the kernel does while it frees much memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    with ExitStack() as stack:
        pidfd = os.pidfd_open(pid)
        stack.callback(os.close, pidfd)
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if entry.is_socket():
                fd = libc.syscall(_PIDFD_GETFD, pidfd, int(entry.name), 0)
                if fd < 0 and ctypes.get_errno() == errno.EBADF:  # closed meanwhile
                    continue
                if fd < 0 and ctypes.get_errno() == errno.EPERM:
                    pytest.skip("file descriptors of other processes are not accessible")
                assert fd >= 0
                stack.callback(os.close, fd)
        yield


@pytest.mark.thorough
def test_probes_report_the_dead_engine_before_its_socket_is_closed(start_server: Any) -> None:
    with start_server("--engine-restarts", "1") as server:
        engine = wait_process(server, "engine")
        with _hold_sockets(engine.pid):
            engine.kill()
            wait_until(lambda: _probe(server)[0] == 503)
            _, body, _ = _probe(server, "/readyz")
            assert body["status"] == "restarting"
            assert "its process is ending" in body["error"]["message"]
            assert server.complete(max_tokens=4) == 503
            assert server.metric("vllm_cli:engine_up") == 0
            assert server.metric("vllm_cli:engine_restarts_total") == 0
        server.wait_ready()
        assert server.metric("vllm_cli:engine_restarts_total") == 1
        assert server.complete(max_tokens=4) == 200


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=() if name == "forkserver" else pytest.mark.slow) for name in START_METHODS],
)
def test_dead_engine_is_restarted_as_often_as_configured(
    start_server: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", method)
    with start_server("--engine-restarts", "1") as server:
        reader = StreamReader(server.url, 4000)
        assert server.metric("vllm_cli:engine_up") == 1
        wait_process(server, "engine").kill()
        wait_until(lambda: server.metric("vllm_cli:engine_restarts_total") == 1)
        server.wait_ready()
        events = reader.finish()
        assert any(event and "error" in event for event in events)
        assert events[-1] is None
        assert server.metric("vllm_cli:engine_up") == 1
        assert server.complete(max_tokens=4) == 200

        family = server.family()
        wait_process(server, "engine").kill()
        assert server.process.wait(_GONE_S) == 1
        assert not psutil.wait_procs(family, timeout=_GONE_S)[1]
        assert "Traceback" not in server.log


@pytest.mark.thorough
def test_killed_forkserver_is_restarted_with_the_engine(start_server: Any) -> None:
    with start_server("--engine-restarts", "1") as server:
        forkserver = wait_process(server, "forkserver")
        forkserver.kill()
        wait_until(lambda: "another engine is ready" in server.log, _GONE_S)
        assert wait_process(server, "forkserver").pid != forkserver.pid
        assert server.complete(max_tokens=4) == 200
        assert server.terminate() == 0


def test_probes_report_the_restart_while_it_runs(start_server: Any, tmp_path: Path) -> None:
    environment = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", **stop_environment(tmp_path)}
    with start_server("--engine-restarts", "1", environment=environment) as server:
        loading = StopPoint(tmp_path, *ENGINE_LOADS)  # keeps the restart running
        wait_process(server, "engine").kill()
        wait_until(lambda: _probe(server)[0] == 503)
        status, body, headers = _probe(server, "/readyz")
        assert status == 503
        assert body["status"] == "restarting"
        assert body["phase"] == "restart_engine"
        assert body["elapsed_s"] >= 0
        assert headers["retry-after"] == "1"
        assert _probe(server, "/livez")[0] == 200
        assert server.complete(max_tokens=4) == 503
        assert server.metric("vllm_cli:engine_up") == 0
        loading.wait_stopped().resume()
        wait_until(lambda: _probe(server)[0] == 200, _GONE_S)


@pytest.mark.thorough
def test_engine_that_hangs_is_declared_dead(start_server: Any) -> None:
    with start_server("--engine-watchdog-timeout", "5") as server:
        reader = StreamReader(server.url, 4000)
        wait_process(server, "engine").suspend()
        assert server.process.wait(_GONE_S) == 1
        assert any(event and "error" in event for event in reader.finish())
        assert "it was silent for 5 s (--engine-watchdog-timeout)" in server.log
