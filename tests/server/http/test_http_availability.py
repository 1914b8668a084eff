"""The server's answers while its state changes, and the first request of a start."""

import json
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from base.errors import EngineStartError
from server.operation.engine_monitor import make_ready
from tests.server.http.conftest import ScriptedEngine


class LoadedEngine(ScriptedEngine):
    error: str | None = None

    async def wait_loaded(self, timeout_s: float):
        return self.info


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ({"fails_after": 0}, "the first token could not be generated: the grammar became too large"),
        ({"dies_after": 0}, "the engine process ended unexpectedly"),
        ({"error": "killed"}, "killed"),
    ],
    ids=["the token fails", "the engine dies before its token", "after it"],
)
async def test_engine_without_a_first_token_is_not_ready(renderer, end, message):
    engine = LoadedEngine([5])
    vars(engine).update(end)
    parts = SimpleNamespace(engine=engine, renderer=renderer, metrics=SimpleNamespace(register_engine=lambda *_: None))
    with pytest.raises(EngineStartError, match=message):
        await make_ready(parts, lambda *_, **__: nullcontext(), timeout_s=5)


def test_draining_server_finishes_and_counts_running_requests_and_rejects_new_ones(serve, engine, wait_until):
    engine.holds_after = 0
    server = serve()
    assert server.get("/load").json() == {"server_load": 0}
    answers = []
    running = threading.Thread(target=lambda: answers.append(server.complete().json()))
    running.start()
    wait_until(lambda: engine.requests)
    assert server.get("/load").json() == {"server_load": 1}
    server.parts.lifecycle.drain()
    response = server.complete()
    assert (response.status_code, response.json()["status"]) == (503, "draining")
    assert response.headers["retry-after"] == "1"
    assert server.get("/health").status_code == 503
    engine.holds_after = None
    running.join()
    assert answers[0]["choices"][0]["finish_reason"] == "stop"
    wait_until(lambda: server.get("/load").json() == {"server_load": 0})


@pytest.mark.thorough
def test_bug_in_mid_stream_becomes_an_event_without_details(server, engine, monkeypatch, caplog):
    def fail(*args):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(engine, "_outputs", fail)
    error, done = server.stream_lines("/v1/completions", {"prompt": "a"})
    assert json.loads(error)["error"]["message"] == "Internal server error"
    assert server.complete().json()["error"] == json.loads(error)["error"]
    assert "secret" in caplog.text
