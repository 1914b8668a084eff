"""Ends of a server: drained, cut short, or failed at the start; `test_process_tree.py` kills processes."""

import signal

import pytest

from envs.registry import START_METHODS
from tests.cli import run_cli
from tests.e2e.stop_point import ENGINE_LOADS, FORKSERVER_IMPORTS, StopPoint
from tests.e2e.stream_reader import StreamReader
from tests.processes import GONE_S, assert_gone
from tests.startup.vllm.fake_start import short_folder
from tests.waiting import wait_until


@pytest.mark.parametrize("method", START_METHODS)
def test_server_answers_and_exits_cleanly_with_each_start_method(start_server, method, monkeypatch):
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", method)
    with start_server() as server:
        family = server.family()
        events = StreamReader(server.url, 4).finish()
        assert events[-1] is None
        assert server.terminate() == 0
        assert_gone(family)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_running_stream_finishes_before_the_server_exits(start_server, signal_number):
    with start_server("--shutdown-timeout", "200") as server:
        reader = StreamReader(server.url, 60)
        code = server.terminate(signal_number)
        events = reader.finish()
    assert code == 0
    assert events[-1] is None
    assert events[-2]["choices"][0]["finish_reason"] == "length"


def test_stream_that_outlasts_the_drain_ends_with_an_error_event(start_server):
    with start_server("--shutdown-timeout", "0.5") as server:
        reader = StreamReader(server.url, 4000)
        assert server.terminate() == 0
        events = reader.finish()
        assert "1 requests may run for 0.5 s more" in server.log
        assert "1 requests are ended with an error" in server.log
    assert any(e and "error" in e for e in events)
    assert events[-1] is None


@pytest.mark.smoke
def test_second_signal_ends_the_drain_at_once(start_server):
    with start_server("--shutdown-timeout", "600") as server:
        reader = StreamReader(server.url, 6000)
        server.process.send_signal(signal.SIGINT)
        server.wait_logged("shutting down: 1 requests")
        server.terminate(signal.SIGINT)
        assert "the server was stopped" in str(reader.finish()[-2:])


@pytest.mark.parametrize("to", ["process", "group"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
@pytest.mark.parametrize("point", [FORKSERVER_IMPORTS, ENGINE_LOADS], ids=["imports", "load"])
def test_a_stopped_start_ends_with_one_line_and_leaves_nothing(start_tiny_server, tmp_path, point, number, code, to):
    waiting = StopPoint(tmp_path, *point)
    with (
        short_folder() as temp,
        start_tiny_server(wait=False, environment={**waiting.environment, "TMPDIR": str(temp)}) as server,
    ):
        waiting.wait_stopped()
        wait_until(server.health)
        family = server.family()
        for process in family if to == "group" else [server.process]:
            process.send_signal(number)
        assert server.process.wait(GONE_S) == code
        assert_gone(family)
        name = signal.Signals(number).name
        assert server.log.count(f"stopped by {name} during the start, in phase ") == 1, server.log
        assert not any(word in server.log for word in ("Traceback", "Error", "Cause:"))
        assert list(temp.iterdir()) == []


@pytest.mark.smoke
def test_missing_model_is_one_line_and_exit_code_3(tmp_path):
    run = run_cli("serve", tmp_path / "nowhere", "--port", "0")
    assert run.returncode == 3, run.stderr
    (error,) = [line for line in run.stderr.splitlines() if line.startswith("Error: ")]
    assert "nowhere" in error
    assert "Traceback" not in run.stderr


def test_engine_that_is_killed_while_it_loads_fails_the_start(start_server, tmp_path):
    loading = StopPoint(tmp_path, *ENGINE_LOADS)
    with start_server(wait=False, environment=loading.environment) as server:
        loading.wait_stopped().kill()
        assert server.process.wait(GONE_S) == 3
        assert "Error: " in server.log
        assert "Traceback" not in server.log
