"""prompt_embeds in POST /v1/completions, with the real route and renderer."""

from collections.abc import Iterator

import pytest
import torch

from server.terms.limits import LimitsConfig
from server.text.renderers.prompt_embeds import EmbedsLimits
from server.text.renderers.renderer import Renderer
from tests.server.http.conftest import MAX_MODEL_LEN, TEXT, assert_rejected
from tests.support.embeds_payloads import torch_payload

WIDTH = 16


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
