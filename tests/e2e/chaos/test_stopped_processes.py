"""Each process is stopped by SIGSTOP, as by a debugger, a cgroup freezer or a paused machine.

When the process continues, requests continue. After a time-out, requests fail and the process is replaced.
The server's exit never waits for a stopped process.
"""

import signal
import time

import pytest

from tests.e2e.process_tree import wait_process
from tests.e2e.server_process import ServerProcess
from tests.e2e.stop_point import API_READS_TOKENIZER, ENGINE_LOADS, FORKSERVER_IMPORTS, StopPoint
from tests.support.http_client import RawClient
from tests.support.openai_client import StreamReader
from tests.support.waiting import wait_until

_GONE_S = 120.0
_BODY = {"prompt": "Once", "max_tokens": 4}


def _assert_whole(reader: StreamReader, max_tokens: int) -> None:
    events = reader.finish()
    assert events.pop() is None
    assert not any("error" in event for event in events)
    assert sum(bool(event["choices"]) for event in events) == max_tokens


@pytest.mark.slow
def test_api_process_that_was_stopped_blames_neither_engine_nor_clients(start_server, monkeypatch):
    """The watchdog and the time-outs of connections ignore the time in which the process was stopped."""
    monkeypatch.setenv("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "10")
    with start_server("--engine-watchdog-timeout", "10", "--http-header-timeout", "10") as server:
        readers = [StreamReader(server.url, 60) for _ in range(3)]
        with RawClient(server.port) as kept, RawClient(server.port) as fresh:
            assert kept.post("/v1/completions", _BODY).read().status == 200
            assert server.health() == 200  # so both connections have been accepted
            server.process.send_signal(signal.SIGSTOP)
            for client in (kept, fresh):
                client.post("/v1/completions", _BODY)
            time.sleep(12)  # longer than the watchdog's and both connections' time-outs
            server.process.send_signal(signal.SIGCONT)
            assert kept.read().status == fresh.read().status == 200
        for reader in readers:
            _assert_whole(reader, 60)
        assert "silent" not in server.log

        server.family()
        server.process.send_signal(signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGCONT)
        assert server.process.wait(_GONE_S) == 0


@pytest.mark.slow
def test_engine_that_is_stopped_for_too_long_ends_the_server(start_server):
    with start_server("--engine-watchdog-timeout", "10") as server:
        server.family()
        reader = StreamReader(server.url, 1500)
        engine = wait_process(server, "engine")
        engine.suspend()
        wait_until(lambda: server.health() == 503)
        assert server.ask("/health").json["status"] == "hung"
        assert server.process.wait(_GONE_S) == 1
        events = reader.finish()
        assert any(event and "error" in event for event in events)
        assert events[-1] is None
        assert f"1 requests run; stopped by a signal: engine (pid {engine.pid})" in server.log
        assert f"Error: engine (pid {engine.pid}) failed while it served." in server.log
        assert "Cause: the engine hung: EngineHangError: it was silent for 10 s (--engine-watchdog" in server.log


@pytest.mark.slow
def test_stopped_forkserver_of_a_dead_engine_does_not_keep_the_server(start_server):
    with start_server() as server:
        server.family()
        forkserver = wait_process(server, "forkserver")
        engine = wait_process(server, "engine")
        forkserver.suspend()
        engine.kill()
        assert server.process.wait(_GONE_S) == 1
        assert f"its process {engine.pid} ended, and the forkserver does not answer" in server.log


@pytest.mark.parametrize(
    ("role", "place", "by", "exit_codes"),
    [
        ("responder", API_READS_TOKENIZER, signal.SIGTERM, (0, -signal.SIGTERM)),
        ("forkserver", FORKSERVER_IMPORTS, signal.SIGINT, (130,)),
        ("engine", ENGINE_LOADS, signal.SIGTERM, (0, -signal.SIGTERM)),
    ],
    ids=["responder", "forkserver", "engine"],
)
def test_signal_ends_the_start_although_one_of_its_processes_is_stopped(
    start_tiny_server, tmp_path, role, place, by, exit_codes
):
    """The process is stopped once it has its death pipe, a few milliseconds after its fork."""
    stop_point = StopPoint(tmp_path, *place)
    with start_tiny_server(wait=False, environment=stop_point.environment) as server:
        stopped = stop_point.wait_stopped()
        if role == "responder":
            wait_process(server, "responder").suspend()
            stopped.resume()
        if role == "forkserver":
            wait_until(lambda: server.phase() == "start_engine_process")
        if role == "engine":
            server.wait_logged(": wait for engine")
        assert server.terminate(by) in exit_codes


def test_start_fails_with_its_error_although_the_forkserver_is_stopped(tmp_path, model_path):
    model, hook = tmp_path / "model", tmp_path / "hook"
    model.mkdir()
    hook.mkdir()
    for file in model_path.iterdir():
        (model / file.name).symlink_to(file)
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.json").write_text('{"version": "none"}')
    importing = StopPoint(hook, "import", "torch._C")
    with ServerProcess([str(model)], wait=False, environment=importing.environment) as server:
        importing.wait_stopped()
        server.family()
        assert server.process.wait(_GONE_S) == 3
        assert f"Cause: cannot load the tokenizer in {model}" in server.log
        assert "forkserver" not in server.log


@pytest.mark.slow
def test_start_with_a_stopped_forkserver_ends_at_its_timeout(start_tiny_server, tmp_path):
    importing = StopPoint(tmp_path, *FORKSERVER_IMPORTS)
    with start_tiny_server("--startup-timeout", "12", wait=False, environment=importing.environment) as server:
        importing.wait_stopped()
        server.family()
        assert server.process.wait(_GONE_S) == 3
        assert "longer than --startup-timeout 12 s, in phase start_engine_process" in server.log
