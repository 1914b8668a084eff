"""Each process of a server is killed: no process is left, and the server exits or logs it and continues."""

import signal

import pytest

from envs.registry import START_METHODS
from tests.cli import run_cli
from tests.e2e.process_tree import Role, find_process, wait_process
from tests.e2e.stop_point import API_READS_TOKENIZER, FORKSERVER_FORKS, StopPoint, stop_environment
from tests.e2e.stream_reader import StreamReader
from tests.processes import GONE_S, assert_gone
from tests.waiting import wait_until

_INTERRUPT_DECODER = """
import os, signal, sys, typing

union = type(typing.Union[int, str])
plain = union.__hash__

def interrupted(self):
    if sys._getframe(1).f_code.co_filename.endswith("server/http_body/request_body.py"):
        union.__hash__ = plain
        os.kill(os.getpid(), signal.SIGINT)
    return plain(self)

union.__hash__ = interrupted
"""


@pytest.mark.parametrize("role", ["engine", "forkserver"])
def test_server_exits_when_its_engine_or_forkserver_is_killed(start_server, role):
    with start_server() as server:
        family, reader = server.family(), StreamReader(server.url, 2000)
        wait_process(server, role).kill()
        assert any(event and "error" in event for event in reader.finish())
        assert server.process.wait(GONE_S) == 1
        assert_gone(family)
        line = next(line for line in server.log.splitlines() if "the engine died" in line)
        assert "forkserver" in line if role == "forkserver" else "killed by SIGKILL" in line
        assert "Traceback" not in server.log


@pytest.mark.parametrize("method", START_METHODS)
def test_no_process_outlives_an_api_process_that_is_killed_during_the_start(start_tiny_server, method, monkeypatch):
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", method)
    with start_tiny_server(wait=False) as server:
        wait_until(server.health)
        family = server.family()
        assert len(family) > 1
        server.process.kill()
        assert_gone(family)


def test_forkserver_that_is_killed_while_it_forks_fails_the_start(start_tiny_server, tmp_path):
    forking = StopPoint(tmp_path, *FORKSERVER_FORKS, signal_number=signal.SIGKILL)
    with start_tiny_server(wait=False, environment=forking.environment) as server:
        wait_process(server, "forkserver")
        family = server.family()
        assert server.process.wait(GONE_S) == 3
        assert_gone(family)
        assert "Cause: the engine process could not be started: the forkserver was killed" in server.log
        assert "Traceback" not in server.log


def test_start_succeeds_without_helper_processes_that_are_killed(start_tiny_server, tmp_path):
    checking = StopPoint(tmp_path, *API_READS_TOKENIZER)
    with start_tiny_server(wait=False, environment=checking.environment) as server:
        api = checking.wait_stopped()
        assert api.pid == server.process.pid
        helpers: tuple[Role, ...] = ("responder", "resource_tracker", "forkserver")
        for role in helpers:
            wait_process(server, role).kill()
        api.resume()
        server.wait_ready()
        assert "the responder process" in server.log
        family = server.family()
        assert server.terminate() == 0
        assert_gone(family)
        assert "Traceback" not in server.log


def test_stopped_engine_exits_when_the_api_process_is_killed(start_tiny_server):
    """The kernel kills the engine, which cannot run Python code."""
    with start_tiny_server() as server:
        family = server.family()
        wait_process(server, "engine").suspend()
        server.process.kill()
        assert_gone(family)


def test_only_the_api_process_acts_on_signals_to_the_process_group(start_tiny_server):
    with start_tiny_server() as server:
        roles = [find_process(server, role) for role in ("engine", "forkserver", "resource_tracker")]
        for process in roles:
            assert process is not None
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
        assert server.complete(max_tokens=4) == 200
        assert server.terminate() == 0
        assert "Traceback" not in server.log


def test_ctrl_c_while_the_command_is_imported_prints_no_traceback(tmp_path):
    importing = StopPoint(tmp_path, "import", "click._compat", signal_number=signal.SIGINT)
    done = run_cli("env", environment=importing.environment)
    assert done.returncode in (-signal.SIGINT, 130)
    assert "Traceback" not in done.stderr


def test_ctrl_c_that_msgspec_discards_ends_the_start(start_tiny_server, tmp_path):
    """Its C code calls `hash` on a message's types, and drops every error of it."""
    (tmp_path / "sitecustomize.py").write_text(_INTERRUPT_DECODER)
    with start_tiny_server(wait=False, environment=stop_environment(tmp_path)) as server:
        assert server.process.wait(GONE_S) == 130
        assert "Traceback" not in server.log
