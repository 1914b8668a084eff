"""Limits of one request and of all together, and `prompt_embeds`. Rejections name limit, value and flag."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import msgspec
import pytest
import torch

from server.terms.limits import LimitsConfig
from server.text.renderers.prompt_embeds import EmbedsLimits
from server.text.renderers.renderer import Renderer
from tests.server.http.conftest import MAX_MODEL_LEN, TEXT, assert_rejected
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


def rows(num_rows: int, seed: int = 0, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def accepting(server, renderer: Renderer) -> Iterator[object]:
    """A server with --enable-prompt-embeds, for a bfloat16 model of 16 numbers per token."""
    renderer.prompts.embeds_limits = EmbedsLimits(MAX_MODEL_LEN, WIDTH, "bfloat16")
    try:
        yield server
    finally:
        renderer.prompts.embeds_limits = None


def embeds_of(engine) -> dict[str, torch.Tensor | None]:
    """Number of the choice -> tensor that the engine has received."""
    return {
        engine_id.rpartition("-")[2]: None
        if inputs is None
        else torch.frombuffer(bytearray(inputs.embeds.data), dtype=torch.bfloat16).reshape(inputs.embeds.shape)
        for engine_id, inputs in engine.inputs.items()
    }


def test_without_the_flag_the_error_names_it(server):
    answer = server.complete(prompt=None, prompt_embeds=torch_payload(rows(3)))
    assert_rejected(answer, "prompt_embeds", "--enable-prompt-embeds")


@pytest.mark.parametrize("prompt", [None, "", []], ids=["none", "empty text", "empty list"])
def test_rows_reach_the_engine_in_the_model_s_type(accepting, engine, prompt):
    fields = {"prompt": prompt, "prompt_embeds": torch_payload(rows(7)), "return_token_ids": True}
    chunks = accepting.stream("/v1/completions", fields)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == TEXT
    engine.requests.clear()
    body = accepting.complete(**fields).json()
    (choice,) = body["choices"]
    assert (choice["text"], choice["prompt_token_ids"]) == (TEXT, [0] * 7)
    assert body["usage"]["prompt_tokens"] == 7
    assert torch.equal(embeds_of(engine)["0"], rows(7).bfloat16())
    assert [prompt for prompt, _ in engine.requests.values()] == [[0] * 7]


def test_the_last_rows_are_kept_on_request(accepting, engine):
    accepting.complete(prompt=None, prompt_embeds=torch_payload(rows(9)), truncate_prompt_tokens=4)
    assert torch.equal(embeds_of(engine)["0"], rows(9).bfloat16()[-4:])


def test_embeddings_come_before_texts(accepting, engine, encode):
    fields = {
        "prompt": ["a", "b"],
        "prompt_embeds": [torch_payload(rows(2)), torch_payload(rows(3, seed=1))],
        "n": 2,
        "max_tokens": 1,
    }
    body = accepting.complete(**fields).json()
    assert [choice["index"] for choice in body["choices"]] == list(range(8))
    found = embeds_of(engine)
    for index, expected in (("0", rows(2)), ("1", rows(2)), ("2", rows(3, seed=1)), ("3", rows(3, seed=1))):
        assert torch.equal(found[index], expected.bfloat16())
    prompts = {engine_id.rpartition("-")[2]: prompt for engine_id, (prompt, _) in engine.requests.items()}
    wanted = [tokens for tokens in ([0] * 2, [0] * 3, encode("a"), encode("b")) for _ in range(2)]
    assert [prompts[str(i)] for i in range(8)] == wanted
    assert found["4"] is None
    assert body["usage"]["prompt_tokens"] == 7


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt_embeds": []}, "prompt", "Either prompt or prompt_embeds must be provided"),
        ({"prompt_embeds": [torch_payload(rows(2)), "AAAA"]}, "prompt_embeds", "is no file of torch.save"),
        ({"prompt_embeds": torch_payload(rows(2, width=8))}, "prompt_embeds", "rows of 8 numbers"),
        ({"prompt_embeds": torch_payload(rows(MAX_MODEL_LEN))}, "input_tokens", "maximum model length of 512"),
        ({"prompt_embeds": torch_payload(rows(MAX_MODEL_LEN + 1))}, "input_tokens", "at least 513 input tokens"),
        ({"prompt_embeds": [5]}, "prompt_embeds", "got `int`"),
        ({"prompt_embeds": torch_payload(rows(2)), "echo": True}, "echo", "`prompt_embeds`"),
        ({"prompt_embeds": torch_payload(rows(2)), "prompt_logprobs": True}, "prompt_logprobs", "not compatible"),
        ({"prompt_embeds": [torch_payload(rows(1))] * 2049}, "prompt", "got 2049"),
        ({"prompt_embeds": torch_payload(rows(9)), "max_tokens": 513}, "max_tokens", "max_model_len=512"),
    ],
)
def test_faults_are_reported_with_their_field(accepting, engine, fields, param, message):
    assert_rejected(accepting.complete(prompt=None, **fields), param, message)
    assert not engine.requests


def test_the_body_limit_grows_with_the_model(accepting, serve, renderer, engine):
    """A body of 500 rows is larger than the limit for bodies without embeddings."""
    server = serve(limits=LimitsConfig(max_body_bytes=1000))
    large = rows(500).bfloat16()
    answer = server.complete(prompt=None, prompt_embeds=torch_payload(large))
    assert answer.json()["usage"]["prompt_tokens"] == 500
    assert torch.equal(embeds_of(engine)["0"], large)
    most = 1000 + renderer.prompts.embeds_limits.max_base64_chars
    too_large = server.complete(prompt=None, prompt_embeds="A" * most)
    assert too_large.status_code == 413
    assert f"larger than {most} bytes" in too_large.json()["error"]["message"]
