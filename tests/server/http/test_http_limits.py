"""Limits of one request and of all requests together. Rejections name the limit, the value and the flag."""

from contextlib import ExitStack
from typing import Any

import httpx
import msgspec
import pytest
import torch

from server.terms.limits import LimitsConfig
from server.text.renderers.prompt_embeds import EmbedsLimits
from tests.server.http.conftest import MAX_MODEL_LEN
from tests.support.embeds_payloads import torch_payload

LONG = {"prompt": "a", "max_tokens": 400}
WIDTH = 16
"""Numbers per embedding row."""


def error_of(response: httpx.Response, status: int) -> str:
    assert response.status_code == status
    error = response.json()["error"]
    assert error["code"] == status
    return str(error["message"])


@pytest.mark.parametrize(
    ("limit", "bodies", "further", "message"),
    [
        (
            {"max_queued_requests": 3},
            [LONG, LONG | {"n": 2}],
            {"prompt": ["a", "b", "c"]},
            "3 of at most 3 requests (--max-num-queued-reqs)",
        ),
        (
            {"max_queued_tokens": 5},
            [LONG | {"prompt": "one two three four five"}],
            {},
            "5 of at most 5 prompt tokens (--max-num-queued-tokens)",
        ),
        ({"max_held_bytes": 3000}, [LONG | {"user": "x" * 2000}], {"user": "x" * 2000}, "of at most 3000 bytes"),
    ],
    ids=["number", "tokens", "bytes"],
)
def test_waiting_requests_are_bounded(serve, engine, wait_until, limit, bodies, further, message):
    engine.holds_after = 0
    server = serve(limits=LimitsConfig(**limit))
    admission = server.parts.admission
    with ExitStack() as stack:
        for body in bodies:
            stack.enter_context(server.send("/v1/completions", body))
        wait_until(lambda: len(engine.requests) == sum(body.get("n", 1) for body in bodies))
        response = server.complete(**further)
        assert message in error_of(response, 503)
        assert response.headers["retry-after"] == "1"
        assert server.get("/health").status_code == 200
        assert admission.num_held_bytes > sum(len(body.get("user", "")) for body in bodies)
        engine.holds_after = 1
        wait_until(lambda: admission.num_queued_tokens == 0)
        engine.holds_after = None
    wait_until(lambda: admission.num_sequences == admission.num_held_bytes == 0)
    assert server.complete(**further).status_code == 200


def test_waiting_requests_are_bounded_in_their_tensors(serve, engine, renderer, monkeypatch, wait_until):
    """A small body may expand to many rows. Then the body is admitted, but its tensors are not."""
    one_row = torch_payload(torch.zeros(1, WIDTH).expand(400, WIDTH))
    assert len(one_row) < 400 * WIDTH * 2 / 3
    monkeypatch.setattr(renderer.prompts, "embeds_limits", EmbedsLimits(MAX_MODEL_LEN, WIDTH, "bfloat16"))
    engine.holds_after = 0
    server = serve(limits=LimitsConfig(max_held_bytes=20_000))
    admission = server.parts.admission
    body = {"prompt_embeds": one_row, "max_tokens": 50}
    with server.send("/v1/completions", body):
        wait_until(lambda: len(engine.requests) == 1)
        assert admission.num_held_bytes == 400 * WIDTH * 2
        message = error_of(server.post("/v1/completions", body), 503)
        assert "12800 of at most 20000 bytes in requests, and this request adds 12800 (--http-max-held-size)" in message
        wait_until(lambda: admission.num_held_bytes == 400 * WIDTH * 2)
        assert len(engine.requests) == 1
        engine.holds_after = None
    wait_until(lambda: admission.num_held_bytes == 0)
    assert server.post("/v1/completions", body).status_code == 200


@pytest.mark.parametrize(
    ("fields", "fails_after", "status"),
    [({}, None, 200), ({"stream": True}, None, 200), ({"top_p": 2}, None, 400), ({}, 1, 500)],
)
def test_a_request_directly_behind_another_one_finds_room(serve, engine, fields, fails_after, status):
    """The server takes the second request in the event loop's step after the end of the first response."""
    engine.fails_after = fails_after
    server = serve(limits=LimitsConfig(max_queued_requests=1, max_queued_tokens=1, max_held_bytes=1))
    body = {"prompt": "a"} | fields
    with server.send("/v1/completions", body) as client:
        client.post("/v1/completions", body)
        assert [client.read().status for _ in range(2)] == [status] * 2


@pytest.mark.parametrize("levels", [100, 190, 900])
@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/chat/completions", "chat_template_kwargs"),
        ("/v1/chat/completions", "messages"),
        ("/v1/chat/completions", "tools"),
        ("/v1/chat/completions", "response_format"),
        ("/v1/responses", "tools"),
        ("/v1/messages", "tools"),
        ("/tokenize", "messages"),
    ],
)
def test_deeply_nested_values_are_never_a_fault_of_the_server(server, path, field, levels):
    nested: Any = {}
    for _ in range(levels):
        nested = {"a": nested}
    schema = {"type": "object", "properties": nested}
    values = {
        "chat_template_kwargs": nested,
        "messages": [{"role": "user", "content": "a", "tool_calls": [nested], "x": nested}],
        "tools": [{"type": "function", "name": "f", "input_schema": schema, "function": {"name": "f"}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    }
    values["tools"][0] |= {"parameters": schema, "function": {"name": "f", "parameters": schema}}
    body = {"model": "smol", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}], "input": "a"}
    text = msgspec.json.encode(
        body | {field: values[field]} | ({"tool_choice": "required"} if field == "tools" else {})
    )
    assert server.post_bytes(path, text).status_code in (200, 400)
