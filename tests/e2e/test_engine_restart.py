"""Engines that die or hang: clients and probes get errors, and a configured restart replaces the engine."""

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from envs.registry import START_METHODS
from tests.e2e.process_tree import wait_process
from tests.e2e.stop_point import ENGINE_LOADS, StopPoint, stop_environment
from tests.e2e.stream_reader import StreamReader
from tests.http_answer import ask
from tests.processes import assert_gone
from tests.waiting import wait_until

_GONE_S = 120.0
_PIDFD_GETFD = 438
"""Number of the system call, the same on all architectures; the standard library has no function for it."""


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


def test_probes_report_the_dead_engine_before_its_socket_is_closed(start_tiny_server):
    with start_tiny_server("--engine-restarts", "1") as server:
        engine = wait_process(server, "engine")
        with _hold_sockets(engine.pid):
            engine.kill()
            server.wait_unready()
            body = ask(f"{server.url}/readyz").json
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
def test_dead_engine_is_restarted_as_often_as_configured(start_server, method, monkeypatch):
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
        assert_gone(family)
        assert "Traceback" not in server.log


def test_killed_forkserver_is_restarted_with_the_engine(start_tiny_server):
    with start_tiny_server("--engine-restarts", "1") as server:
        forkserver = wait_process(server, "forkserver")
        forkserver.kill()
        wait_until(lambda: "another engine is ready" in server.log, _GONE_S)
        assert wait_process(server, "forkserver").pid != forkserver.pid
        assert server.complete(max_tokens=4) == 200
        assert server.terminate() == 0


def test_probes_report_the_restart_while_it_runs(start_tiny_server, tmp_path):
    environment = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", **stop_environment(tmp_path)}
    with start_tiny_server("--engine-restarts", "1", environment=environment) as server:
        loading = StopPoint(tmp_path, *ENGINE_LOADS)  # keeps the restart running
        wait_process(server, "engine").kill()
        server.wait_unready()
        answer = ask(f"{server.url}/readyz")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert (answer.json["status"], answer.json["phase"]) == ("restarting", "restart_engine")
        assert answer.json["elapsed_s"] >= 0
        assert ask(f"{server.url}/livez").status == 200
        assert server.complete(max_tokens=4) == 503
        assert server.metric("vllm_cli:engine_up") == 0
        loading.wait_stopped().resume()
        wait_until(lambda: server.health() == 200, _GONE_S)
