"""Processes of a server are killed or hang. Clients and probes get errors, and no process is left.

The server exits, or logs the end of the process and continues.
"""

import signal

import pytest

from envs.registry import START_METHODS
from tests.e2e.server_process import Role, find_process, wait_process
from tests.e2e.stop_point import API_READS_TOKENIZER, FORKSERVER_FORKS, StopPoint, stop_environment
from tests.support.folders import short_folder
from tests.support.http_client import StreamReader
from tests.support.program import READY_S
from tests.support.tiers import slow_but_for
from tests.support.waiting import GONE_S, is_gone, stopped, wait_until

_INTERRUPT_DECODER = """
import os, signal, sys, typing

alias = type(typing.Annotated[int, 1])
plain = alias.__hash__

def interrupted(self):
    if sys._getframe(1).f_code.co_filename.endswith("server/terms/http_body/request_body.py"):
        alias.__hash__ = plain
        os.kill(os.getpid(), signal.SIGINT)
    return plain(self)

alias.__hash__ = interrupted
"""


@pytest.mark.parametrize("method", slow_but_for(START_METHODS, "forkserver"))
def test_no_process_outlives_an_api_process_that_is_killed_during_the_start(start_tiny_server, method, monkeypatch):
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", method)
    with start_tiny_server(wait=False) as server:
        wait_until(server.health)
        assert len(server.family()) > 1
        server.process.kill()


@pytest.mark.parametrize("words", [(), ("--idle-stop", "1h")], ids=["server", "router"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT])
def test_the_next_start_removes_what_a_killed_one_has_left(start_tiny_server, words, number):
    with short_folder() as temp:
        environment = {"TMPDIR": str(temp)}
        with start_tiny_server(*words, environment=environment) as server:
            server.family()
            server.process.send_signal(number)
            assert server.process.wait(GONE_S) == -number
        with start_tiny_server(*words, environment=environment) as server:
            assert len(list(temp.iterdir())) == 1 + len(words) // 2
            server.terminate()
        assert list(temp.iterdir()) == []


def test_an_engine_is_a_new_program_if_the_forkserver_is_killed_while_it_forks(start_tiny_server, tmp_path):
    forking = StopPoint(tmp_path, *FORKSERVER_FORKS, signal_number=signal.SIGKILL)
    with start_tiny_server(wait=False, environment=forking.environment) as server:
        server.wait_ready()
        assert find_process(server, "forkserver") is None
        assert server.complete(max_tokens=4) == 200
        assert server.terminate() == 0
        assert "is started as a new program instead of forked: the forkserver " in server.log


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
        assert server.terminate() == 0


def test_ctrl_c_that_msgspec_discards_ends_the_start(start_tiny_server, tmp_path):
    """msgspec's C code hashes a message's types. It discards all errors then, even KeyboardInterrupt."""
    (tmp_path / "sitecustomize.py").write_text(_INTERRUPT_DECODER)
    with start_tiny_server(wait=False, environment=stop_environment(tmp_path)) as server:
        assert server.process.wait(READY_S) == 130


@pytest.mark.parametrize("role", ["engine", "forkserver"])
@pytest.mark.parametrize("method", slow_but_for(START_METHODS, "forkserver"))
def test_a_dead_engine_or_forkserver_ends_the_server_with_the_reason(start_tiny_server, method, role, cold_or_warm):
    if role == "forkserver" and method != "forkserver":
        pytest.skip("there is none")
    environment = cold_or_warm | {"VLLM_WORKER_MULTIPROC_METHOD": method}
    with start_tiny_server(environment=environment) as server:
        server.family()
        assert server.metric("vllm_cli:engine_up") == 1
        victim = wait_process(server, role)
        reader = StreamReader(server.url, 4000)  # some seconds
        victim.kill()
        events = reader.finish()
        assert any(event and "error" in event for event in events)
        assert events[-1] is None
        assert server.process.wait(GONE_S) == 1
        line = next(line for line in server.log.splitlines() if "the engine died" in line)
        assert ("killed by SIGKILL" if role == "engine" else "forkserver") in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_engine_has_died_hides_no_failure(start_tiny_server, number, tmp_path):
    """Behind a router, a drain takes no time, and would end before the reason of the death is known."""
    with start_tiny_server(environment={"VCLI_ROUTER": str(tmp_path / "socket")}) as server:
        engine = wait_process(server, "engine")
        with stopped(find_process(server, "api").pid):
            engine.kill()
            wait_until(lambda: is_gone(engine.pid))
            server.process.send_signal(number)
        assert server.process.wait(GONE_S) == 1
        assert "the engine died: " in server.log
