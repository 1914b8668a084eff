"""Each process is stopped by SIGSTOP, as by a debugger, a cgroup freezer or a paused machine.

When the process continues, requests continue. After a time-out, requests fail and the process is replaced.
The server's exit never waits for a stopped process.
"""

import signal

import pytest

from tests.e2e.server_process import ServerProcess, wait_process
from tests.e2e.stop_point import API_READS_TOKENIZER, ENGINE_LOADS, FORKSERVER_IMPORTS, StopPoint
from tests.support.waiting import wait_until

_GONE_S = 120.0


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
