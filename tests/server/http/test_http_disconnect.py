"""When a client disconnects, its sequences are aborted in the engine at once."""

import socket
from urllib.parse import urlsplit

import pytest

from tests.server.http.raw_request import send

BODIES = {
    "completion": ("/v1/completions", {"prompt": "a", "max_tokens": 400, "ignore_eos": True}),
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 400}),
    "stream": ("/v1/completions", {"prompt": "a", "max_tokens": 400, "stream": True}),
    "chat stream": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "stream": True}),
    "several": ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 400}),
    "several streamed": ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 400, "stream": True}),
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("pace", [{"holds_after": 2}, {"step_s": 0.25}], ids=["silent", "slow"])
def test_engine_requests_are_aborted(server, engine, wait_until, kind, pace):
    """Without the abort the silent engine would run for ever and the slow one for 100 s."""
    engine.reply = engine.reply * 50
    vars(engine).update(pace)
    path, body = BODIES[kind]
    num_sequences = 4 if "several" in kind else 1
    with send(server, path, body):
        wait_until(lambda: len(engine.requests) == num_sequences)
        assert not engine.aborted
    wait_until(lambda: len(engine.aborted) == num_sequences)
    wait_until(lambda: server.parts.running.num_running == 0)


def test_client_that_disconnects_within_its_body_leaves_no_running_request(server, engine, wait_until):
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        )
        wait_until(lambda: server.parts.running.num_running == 1)
    wait_until(lambda: server.parts.running.num_running == 0)
    assert not engine.requests


def test_finished_requests_are_not_aborted(server, engine):
    assert server.complete().status_code == 200
    assert server.chat(stream=True).status_code == 200
    assert not engine.aborted
