"""Responses to probes and requests in each state of the lifecycle."""

import json
import threading

import pytest

from base.lifecycle import Lifecycle

LOADING = {
    "error": {"code": 503, "message": "Loading model", "type": "unavailable_error"},
    "status": "starting",
    "phase": "load_weights",
    "progress": 0.5,
    "elapsed_s": 1.0,
    "eta_s": 1.0,
}
POSTS = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [5]},
}


@pytest.fixture
def starting_server(serve):
    """A server whose engine is not ready yet."""
    return serve(lifecycle=Lifecycle())


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_ready_server_answers_probes_without_a_body(server, method):
    response = server.get("/health") if method == "GET" else server.post("/ping", None)
    assert (response.status_code, response.content) == (200, b"")
    assert server.get("/ping").status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ping", "/v1/models", "/v1/models/smol", *POSTS])
def test_starting_server_answers_with_the_progress_of_its_start(starting_server, path):
    response = starting_server.post(path, POSTS[path]) if path in POSTS else starting_server.get(path)
    assert (response.status_code, response.json()) == (503, LOADING)
    assert response.headers["retry-after"] == "1"


def test_starting_server_rejects_messages_with_anthropics_error(starting_server):
    response = starting_server.post("/v1/messages", {})
    assert (response.status_code, response.json()["type"]) == (503, "error")
    assert response.json()["error"]["type"] == "overloaded_error"
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("path", ["/version", "/load", "/metrics", "/openapi.json"])
def test_starting_server_answers_the_routes_about_itself(starting_server, path):
    assert starting_server.get(path).status_code == 200


def test_draining_server_finishes_running_requests_and_rejects_new_ones(serve, engine, wait_until):
    engine.holds_after = 0
    server = serve()
    answers = []
    running = threading.Thread(target=lambda: answers.append(server.complete().json()))
    running.start()
    wait_until(lambda: engine.requests)
    server.parts.lifecycle.drain()
    response = server.complete()
    assert (response.status_code, response.json()["status"]) == (503, "draining")
    assert response.headers["retry-after"] == "1"
    assert server.get("/health").status_code == 503
    engine.holds_after = None
    running.join()
    assert answers[0]["choices"][0]["finish_reason"] == "stop"


def test_dead_engine_turns_health_into_503(serve):
    server = serve()
    server.parts.lifecycle.engine_ended("killed by signal 9")
    response = server.get("/health")
    assert (response.status_code, response.json()["status"]) == (503, "dead")
    assert "killed by signal 9" in response.json()["error"]["message"]
    assert "retry-after" not in response.headers
    assert server.complete().status_code == 503


@pytest.mark.parametrize("death", [{"dies_after": 3}, {"fails_after": 3}], ids=["engine dies", "sequence fails"])
@pytest.mark.parametrize("n", [1, 2])
def test_failure_of_the_engine_is_a_500(server, engine, death, n):
    vars(engine).update(death)
    response = server.complete(n=n)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "InternalServerError"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("n", [1, 2])
def test_failure_in_mid_stream_becomes_an_event(server, engine, path, n):
    engine.fails_after = 3
    *_, error, done = server.stream_lines(path, POSTS[path] | {"n": n, "max_tokens": 16})
    assert done == "[DONE]"
    assert json.loads(error) == {
        "error": {
            "message": "the grammar became too large",
            "type": "InternalServerError",
            "param": None,
            "code": 500,
        }
    }


def test_bug_in_mid_stream_becomes_an_event_without_details(server, engine, monkeypatch, caplog):
    def fail(*args):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(engine, "_outputs", fail)
    error, done = server.stream_lines("/v1/completions", {"prompt": "a"})
    assert json.loads(error)["error"]["message"] == "Internal server error"
    assert server.complete().json()["error"] == json.loads(error)["error"]
    assert "secret" in caplog.text


def test_load_counts_running_requests(serve, engine, wait_until):
    engine.holds_after = 0
    server = serve()
    assert server.get("/load").json() == {"server_load": 0}
    running = threading.Thread(target=server.complete)
    running.start()
    wait_until(lambda: engine.requests)
    assert server.get("/load").json() == {"server_load": 1}
    engine.holds_after = None
    running.join()
    wait_until(lambda: server.get("/load").json() == {"server_load": 0})


def test_readyz_is_health_and_livez_is_not(starting_server):
    server = starting_server
    assert server.get("/readyz").status_code == 503
    assert server.get("/livez").status_code == 200
    server.parts.lifecycle.engine_ready()
    assert server.get("/readyz").status_code == 200


def test_startupz_is_the_timeline(server):
    assert server.get("/startupz").json() == {"outcome": "ready"}
