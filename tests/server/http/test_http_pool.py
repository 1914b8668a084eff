"""Work in the renderer pool. If a client disconnects, its waiting and running work ends at once."""

import json
import threading

import pytest

from tests.server.http.conftest import PATIENT_S

LARGE = "The quick brown fox jumps over the lazy dog. " * 2000


@pytest.fixture
def pool_waits(renderer):
    """The waiting time of each work item that a thread of the pool has begun."""
    waits: list[float] = []
    renderer.pools.owned["text"].on_wait = waits.append
    yield waits
    renderer.pools.owned["text"].on_wait = lambda _: None


@pytest.fixture
def busy_pool(renderer, server, wait_until):
    """Keeps the pool's only thread busy until the event is set. The pool is idle before and afterwards."""
    has_begun, release = threading.Event(), threading.Event()

    def hold():
        has_begun.set()
        return release.wait(PATIENT_S)

    def is_idle():
        return server.parts.running.num_running == renderer.pools.owned["text"].num_waiting == 0

    wait_until(is_idle)  # a client of the test before may have left just now
    done = renderer.pools.owned["text"].submit(hold)
    assert has_begun.wait(PATIENT_S)
    yield release
    release.set()
    assert done.result()
    wait_until(is_idle)


def test_a_small_request_is_one_call_in_the_pool_and_a_large_body_is_decoded_and_rendered_there(server, pool_waits):
    assert server.chat().status_code == server.complete().status_code == 200
    assert len(pool_waits) == 2
    response = server.complete(prompt=LARGE, truncate_prompt_tokens=8)
    assert response.json()["usage"]["prompt_tokens"] == 8
    assert len(pool_waits) >= 4


def test_a_body_in_chunks_is_read_whole(server):
    body = json.dumps({"prompt": LARGE, "truncate_prompt_tokens": 8}).encode()
    response = server.post_bytes("/v1/completions", iter([body[:1], body[1:3], body[3:]]))
    assert response.json()["usage"]["prompt_tokens"] == 8


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 9}, "temperature"),
        ({"user": LARGE, "n": 0}, "n"),
        ({"messages": [{"role": "user", "content": LARGE}, {"content": "no role"}]}, "messages"),
        ({"messages": [{"role": "user", "content": LARGE * 10}]}, "input_text"),
    ],
)
def test_an_error_in_the_pool_reaches_the_client(server, engine, pool_waits, fields, param):
    body = {"messages": [{"role": "user", "content": LARGE}]} | fields
    response = server.post("/v1/chat/completions", body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert pool_waits
    assert not engine.requests


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize"])
def test_a_client_that_disconnects_while_its_work_waits_cancels_the_work(
    server, engine, renderer, wait_until, busy_pool, path
):
    pool = renderer.pools.owned["text"]
    body = {"prompt": LARGE} if path == "/v1/completions" else {"messages": [{"role": "user", "content": LARGE}]}
    with server.send(path, body):
        wait_until(lambda: pool.num_waiting == 1)
        assert server.get("/health").status_code == 200, "probes are answered while the pool is busy"
    wait_until(lambda: server.parts.running.num_running == 0)
    busy_pool.set()
    wait_until(lambda: pool.num_waiting == 0)
    assert not engine.requests
    assert server.chat().status_code == 200


BODIES = {
    "completion": ("/v1/completions", {"prompt": "a", "max_tokens": 400, "ignore_eos": True}),
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 400}),
    "stream": ("/v1/completions", {"prompt": "a", "max_tokens": 400, "stream": True}),
    "chat stream": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "stream": True}),
    "response stream": ("/v1/responses", {"input": "a", "stream": True}),
    "several": ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 400}),
    "several streamed": ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 400, "stream": True}),
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("pace", [{"holds_after": 2}, {"step_s": 0.25}], ids=["silent", "slow"])
def test_engine_requests_are_aborted(server, engine, wait_until, kind, pace):
    """Without the abort, the silent engine would run for ever, and the slow engine for 100 s."""
    engine.reply = engine.reply * 50
    vars(engine).update(pace)
    path, body = BODIES[kind]
    num_sequences = 4 if "several" in kind else 1
    with server.send(path, body):
        wait_until(lambda: len(engine.requests) == num_sequences)
        assert not engine.aborted
    wait_until(lambda: len(engine.aborted) == num_sequences)
    wait_until(lambda: server.parts.running.num_running == 0)
