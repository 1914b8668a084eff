"""Limits of one request: the rejection names limit, value and flag."""

import msgspec
import pytest

from base.errors import RequestError
from server.apis.messages.request import MessagesRequest
from server.apis.pooling.endpoints import EmbeddingRequest
from server.apis.pooling.scoring import RerankRequest
from server.generation.completion_request import CompletionRequest
from server.http_body.request_body import RequestDecoder
from server.limits import LimitsConfig

MESSAGE = {"role": "user", "content": "a"}
MESSAGES = {"model": "a", "max_tokens": 1, "messages": [MESSAGE]}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("limit", "model", "body", "message"),
    [
        ("max_choices", CompletionRequest, {"prompt": "a", "n": 3}, "together, got 3 (VLLM_MAX_N_SEQUENCES)"),
        ("max_choices", CompletionRequest, {"prompt": ["a"] * 2, "n": 2}, "together, got 4 (VLLM_MAX_N_SEQUENCES)"),
        ("max_prompts", CompletionRequest, {"prompt": ["a"] * 3}, "most 2 members, got 3 (--http-max-prompts)"),
        ("max_prompts", EmbeddingRequest, {"input": ["a"] * 3}, "most 2 members, got 3 (--http-max-prompts)"),
        ("max_prompts", RerankRequest, {"query": "a", "documents": ["a"] * 3}, "got 3 (--http-max-prompts)"),
        ("max_stop_strings", MessagesRequest, MESSAGES | {"stop_sequences": ["a"] * 3}, "`stop_sequences` may have"),
        ("max_stop_strings", CompletionRequest, {"prompt": "a", "stop": ["a", "b", "c"]}, "(--http-max-stop-strings)"),
    ],
)
def test_a_request_above_a_limit_is_rejected(limit, model, body, message):
    encoded = msgspec.json.encode(body)
    assert RequestDecoder(model).decode(encoded) is not None
    with pytest.raises(RequestError) as caught:
        RequestDecoder(model, limits=LimitsConfig(**{limit: 2})).decode(encoded)
    assert caught.value.status == 400
    assert message in caught.value.message
