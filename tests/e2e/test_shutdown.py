"""Ends of a server: drained, cut short, killed, or failed during the start; no process is left."""

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from envs.registry import START_METHODS
from tests.e2e.process_tree import wait_process
from tests.e2e.raw_client import RawClient
from tests.e2e.stop_point import ENGINE_LOADS, StopPoint
from tests.e2e.stream_reader import StreamReader
from tests.waiting import wait_until

_GONE_S = 60.0


@pytest.mark.parametrize("method", START_METHODS)
def test_server_answers_and_exits_cleanly_with_each_start_method(
    start_server: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", method)
    with start_server() as server:
        family = server.family()
        events = StreamReader(server.url, 4).finish()
        assert events[-1] is None
        assert server.terminate() == 0
        _, left = psutil.wait_procs(family, timeout=_GONE_S)
        assert not left


@pytest.mark.thorough
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_running_stream_finishes_before_the_server_exits(start_server: Any, signal_number: int) -> None:
    with start_server("--shutdown-timeout", "200") as server:
        reader = StreamReader(server.url, 60)
        code = server.terminate(signal_number)
        events = reader.finish()
    assert code == 0
    assert events[-1] is None
    assert events[-2]["choices"][0]["finish_reason"] == "length"


def test_stream_that_outlasts_the_drain_ends_with_an_error_event(start_server: Any) -> None:
    with start_server("--shutdown-timeout", "0.5") as server:
        reader = StreamReader(server.url, 4000)
        assert server.terminate() == 0
        events = reader.finish()
        assert "1 requests may run for 0.5 s more" in server.log
        assert "1 requests are ended with an error" in server.log
    assert any(e and "error" in e for e in events)
    assert events[-1] is None


@pytest.mark.thorough
def test_new_requests_get_a_503_while_draining(start_server: Any) -> None:
    environment = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600"}
    with start_server("--shutdown-timeout", "200", environment=environment) as server, RawClient(server.port) as kept:
        assert kept.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").read().status == 200
        reader = StreamReader(server.url, 100)
        engine = wait_process(server, "engine")
        engine.suspend()  # keeps the stream running
        server.process.send_signal(signal.SIGTERM)
        server.wait_logged("shutting down: 1 requests")
        answer = kept.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n").read()
        assert answer.status == 503
        assert "retry-after" in answer.headers
        engine.resume()
        assert reader.finish()[-1] is None
        assert server.process.wait(_GONE_S) == 0


@pytest.mark.smoke
def test_second_signal_ends_the_drain_at_once(start_server: Any) -> None:
    with start_server("--shutdown-timeout", "600") as server:
        reader = StreamReader(server.url, 6000)
        server.process.send_signal(signal.SIGINT)
        server.wait_logged("shutting down: 1 requests")
        server.terminate(signal.SIGINT)
        assert "the server was stopped" in str(reader.finish()[-2:])


def test_server_whose_engine_dies_answers_503_and_exits(start_server: Any) -> None:
    with start_server() as server:
        reader = StreamReader(server.url, 2000)
        wait_process(server, "engine").kill()
        wait_until(lambda: server.health() != 200)
        assert server.health() in (503, 0)
        assert server.process.wait(_GONE_S) == 1
        events = reader.finish()
        assert any(e and "error" in e for e in events)
        assert "the engine died" in server.log
        assert "Traceback" not in server.log


@pytest.mark.thorough
def test_engine_does_not_outlive_a_killed_server(start_server: Any) -> None:
    with start_server() as server:
        family = server.family()
        server.process.kill()
        server.process.wait()
        _, left = psutil.wait_procs(family, timeout=_GONE_S)
        assert not left


def _serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vllm_cli", "serve", *arguments], capture_output=True, text=True, timeout=100
    )


def _assert_one_line(run: subprocess.CompletedProcess[str], *words: str) -> None:
    assert run.returncode == 3, run.stderr
    errors = [line for line in run.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert all(w in errors[0] for w in words), errors[0]
    assert "Traceback" not in run.stderr


def test_port_in_use_is_one_line_and_exit_code_3(model_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        _assert_one_line(_serve(str(model_path), "--host", "127.0.0.1", "--port", port), port, "in use")


@pytest.mark.smoke
def test_missing_model_is_one_line_and_exit_code_3(tmp_path: Path) -> None:
    _assert_one_line(_serve(str(tmp_path / "nowhere"), "--port", "0"), "nowhere")


def test_corrupt_config_is_one_line_and_exit_code_3(tmp_path: Path, model_path: Path) -> None:
    for file in model_path.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "llama", ')
    _assert_one_line(_serve(str(tmp_path), "--port", "0"), "config.json")


def test_truncated_weights_are_one_line_and_exit_code_3(tmp_path: Path, model_path: Path) -> None:
    for file in model_path.iterdir():
        (tmp_path / file.name).symlink_to(file)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()[: 1 << 20]
    weights.unlink()
    weights.write_bytes(content)
    _assert_one_line(_serve(str(tmp_path), "--port", "0"), str(tmp_path))


@pytest.mark.thorough
def test_engine_that_is_killed_while_it_loads_fails_the_start(start_server: Any, tmp_path: Path) -> None:
    loading = StopPoint(tmp_path, *ENGINE_LOADS)
    with start_server(wait=False, environment=loading.environment) as server:
        loading.wait_stopped().kill()
        assert server.process.wait(_GONE_S) == 3
        assert "Error: " in server.log
        assert "Traceback" not in server.log
