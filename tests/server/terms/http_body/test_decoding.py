"""Request bodies become structs, or errors that name the field, or a limit and its flag."""

import functools
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from base import json_depth
from base.errors import RequestError
from server.apis.anthropic.messages_request import AnthropicRequest
from server.apis.pooling.endpoints import EmbeddingRequest
from server.apis.pooling.scoring import RerankRequest
from server.apis.tokenization import DetokenizeRequest, TokenizeRequest
from server.generation.generation_request import ChatRequest, CompletionRequest
from server.terms.http_body.request_body import RequestDecoder, check_num_values
from server.terms.limits import LimitsConfig
from tests.support.properties import given, json_values, st


def fail(body: bytes, model: type = CompletionRequest) -> RequestError:
    with pytest.raises(RequestError) as caught:
        RequestDecoder(model).decode(body)
    assert caught.value.status == 400
    return caught.value


def test_unknown_fields_are_ignored_at_every_level():
    body = (
        b'{"messages": [{"role": "user", "x": 1}], "a": {"b": 1}, "stream": true, "stream_options": {"c": 1}, '
        b'"tools": [{"function": {"name": "f", "d": 1}}], "tool_choice": {"function": {"name": "f"}, "e": 1}}'
    )
    request = RequestDecoder(ChatRequest).decode(body)
    assert request.messages == [{"role": "user", "x": 1}]
    assert (request.stream, request.tools[0].function.name, request.named_function) == (True, "f", "f")


def test_an_unknown_field_does_not_hide_other_errors():
    assert fail(b'{"prompt": "a", "foo": 1, "n": 0}').param == "n"
    assert fail(b'{"foo": 1}', ChatRequest).param == "messages"
    assert "not valid JSON" in fail(b'{"prompt": "a", "foo": 1').message
    assert "not valid JSON" in fail(b'{"prompt": "\xff", "foo": 1}').message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_may_have_any_of_its_encodings(encoding):
    assert RequestDecoder(CompletionRequest).decode('{"prompt": "é"}'.encode(encoding)).prompt == "é"


@pytest.mark.parametrize(
    "fields",
    [
        f'"response_format": {{"type": "{"x" * 10_000}"}}',
        f'"logit_bias": {{"{"x" * 10_000}": 1}}',
        f'"n": -{"9" * 1000}',
    ],
    ids=["word", "key", "number"],
)
def test_huge_value_is_truncated_in_the_message(fields):
    assert 200 < len(fail(b'{"prompt": "a", ' + fields.encode() + b"}").message) < 300


@pytest.mark.parametrize(
    ("body", "message"),
    [
        *((body, "not valid JSON") for body in (b"", b"{", b"nonsense", b'{\0"', b"\xff\xfe{", b"\xef\xbb\xbf\xff")),
        (b'{"prompt": "\xff"}', "not valid JSON"),
        (b'{"prompt": "a", "temperature": NaN}', "not valid JSON"),
        (b'{"prompt": "a", "temperature": Infinity}', "not valid JSON"),
        (b'{"prompt": "\\ud800"}', "not valid JSON"),
        (b'{"prompt": "a", "temperature": 1e999}', "out of range"),
        *((body, "must be a JSON object") for body in (b"[]", b"null", b'"text"', b"3")),
    ],
    ids=repr,
)
def test_what_is_no_json_object_is_rejected(body, message):
    assert message in fail(body).message


@pytest.mark.parametrize("levels", [198, 100_000])
def test_nesting_is_limited_not_by_the_parser(levels):
    body = b'{"messages": [{"a": ' + b"[" * levels + b"]" * levels + b"}]}"
    assert fail(body, ChatRequest).message == "The request body is nested more than 200 levels deep."
    deepest = b'{"prompt": "a", "kv_transfer_params": ' + b'{"a":' * 198 + b"[1]" + b"}" * 198 + b"}"
    assert RequestDecoder(CompletionRequest).decode(deepest).prompts == ["a"]


_NESTED = functools.reduce(lambda inner, _: {"a": inner}, range(62), {"type": "object"})
_DEFAULTS = LimitsConfig()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("model", "body"),
    [
        pytest.param(DetokenizeRequest, {"tokens": [1] * (_DEFAULTS.max_json_values - 3)}, id="values, detokenize"),
        pytest.param(CompletionRequest, {"prompt": [1] * (_DEFAULTS.max_json_values - 3)}, id="values, prompt"),
        pytest.param(CompletionRequest, {"prompt": ["a"] * _DEFAULTS.max_prompts}, id="prompts"),
        pytest.param(CompletionRequest, {"prompt": "a", "n": _DEFAULTS.max_queued_requests}, id="n"),
        pytest.param(CompletionRequest, {"prompt": "a", "stop": ["x" * 16] * _DEFAULTS.max_stop_strings}, id="stop"),
        pytest.param(
            CompletionRequest, {"prompt": "a", "structured_outputs": {"json": _NESTED}}, id="nesting of a schema"
        ),
    ],
)
def test_a_request_at_a_documented_limit_is_below_all_other_limits(model, body):
    RequestDecoder(model).decode(json.dumps(body).encode())
    assert _DEFAULTS.max_queued_requests is not None
    assert _DEFAULTS.max_prompts <= _DEFAULTS.max_queued_requests <= _DEFAULTS.max_choices
    assert len(json.dumps(body)) < _DEFAULTS.max_body_bytes


def has_at_most(body: bytes, most: int) -> bool:
    try:
        check_num_values(body, most)
    except RequestError as error:
        assert f"more than {most} objects, lists, texts and numbers (--http-max-json-values)" in error.message
        return False
    return True


@pytest.mark.thorough
@given(json_values(st.text('a\\"[],\n🙂', max_size=8)), st.integers(2, 30), st.sampled_from(["", "   ", "x"]))
def test_values_are_counted_outside_of_texts_in_pieces_of_any_size(value, piece_bytes, gap):
    body = json.dumps([value, gap * 30], indent=1 if gap else None, ensure_ascii=False).encode()
    num_values = max(1 + sum(_sizes([value, ""])), _num_texts([value, ""]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_depth, "_PIECE_BYTES", piece_bytes)
        assert has_at_most(body, num_values)
        assert not has_at_most(body, num_values - 1)


def _sizes(value: Any) -> Iterator[int]:
    """Yields the number of members (at least 1) of each object and list, including the value itself."""
    if isinstance(value, dict | list):
        yield max(len(value), 1)
        for member in value.values() if isinstance(value, dict) else value:
            yield from _sizes(member)


def _num_texts(value: Any) -> int:
    """The number of texts and members' names. Other values count as texts."""
    if isinstance(value, dict):
        return len(value) + sum(map(_num_texts, value.values()))
    return sum(map(_num_texts, value)) if isinstance(value, list) else 1


@pytest.mark.parametrize("body", [b'"', b'"\\', b"]" * 100, b'["', b"\xff" * 40_000, b"", b'[",,,,,\\'])
def test_invalid_json_is_left_to_the_decoder(body):
    assert has_at_most(body, 2)


@pytest.mark.parametrize(
    ("model", "body", "values"),
    [
        (CompletionRequest, {"prompt": "a"}, {"prompts": ["a"]}),
        (CompletionRequest, {"prompt": ["a", "b"]}, {"prompts": ["a", "b"]}),
        (CompletionRequest, {"prompt": [1, 2]}, {"prompts": [[1, 2]]}),
        (CompletionRequest, {"prompt": [[1], [2, 3]]}, {"prompts": [[1], [2, 3]]}),
        (
            CompletionRequest,
            {"prompt": "a"} | dict.fromkeys(("n", "max_tokens", "stop", "stream", "temperature")),
            {"num_choices": 1, "output_limit": 16, "stop_strings": ()},
        ),
        (CompletionRequest, {"prompt": "a", "logprobs": True, "temperature": False}, {"logprobs": 1, "temperature": 0}),
        (CompletionRequest, {"prompt": "a", "stream": False, "echo": True}, {"stream": False, "echo": True}),
        (CompletionRequest, {"prompt": "a", "temperature": "0.5", "n": "2"}, {"temperature": 0.5, "n": 2}),
        (CompletionRequest, {"prompt": "a", "stream": "true", "ignore_eos": 1}, {"stream": True, "ignore_eos": True}),
        (CompletionRequest, {"prompt": "a", "stop": ["1"]}, {"stop_strings": ("1",)}),
        (
            ChatRequest,
            {"messages": [{}], "max_tokens": 5, "max_completion_tokens": 7},
            {"output_limit": 7, "output_limit_param": "max_completion_tokens"},
        ),
    ],
)
def test_values_have_the_forms_that_vllm_accepts(model, body, values):
    request = RequestDecoder(model).decode(json.dumps(body).encode())
    assert {name: getattr(request, name) for name in values} == values


@pytest.mark.parametrize("body", [b"{}", b'{"prompt": "a", "messages": [{}]}'])
def test_tokenize_requires_either_a_prompt_or_messages(body):
    assert fail(body, TokenizeRequest).message == "Give either `prompt` or `messages`."


MESSAGE = {"role": "user", "content": "a"}
MESSAGES = {"model": "a", "max_tokens": 1, "messages": [MESSAGE]}


@pytest.mark.parametrize(
    ("limit", "model", "body", "message"),
    [
        ("max_choices", CompletionRequest, {"prompt": "a", "n": 3}, "together, got 3 (VLLM_MAX_N_SEQUENCES)"),
        ("max_choices", CompletionRequest, {"prompt": ["a"] * 2, "n": 2}, "together, got 4 (VLLM_MAX_N_SEQUENCES)"),
        ("max_prompts", CompletionRequest, {"prompt": ["a"] * 3}, "members, got 3 (VLLM_MAX_COMPLETION_PROMPTS)"),
        ("max_prompts", EmbeddingRequest, {"input": ["a"] * 3}, "members, got 3 (VLLM_MAX_COMPLETION_PROMPTS)"),
        ("max_prompts", RerankRequest, {"query": "a", "documents": ["a"] * 3}, "got 3 (VLLM_MAX_COMPLETION_PROMPTS)"),
        ("max_stop_strings", AnthropicRequest, MESSAGES | {"stop_sequences": ["a"] * 3}, "`stop_sequences` may have"),
        ("max_stop_strings", CompletionRequest, {"prompt": "a", "stop": ["a", "b", "c"]}, "(VLLM_MAX_STOP_STRINGS)"),
    ],
)
def test_a_request_above_a_limit_is_rejected(limit, model, body, message):
    encoded = msgspec.json.encode(body)
    assert RequestDecoder(model).decode(encoded) is not None
    with pytest.raises(RequestError) as caught:
        RequestDecoder(model, limits=LimitsConfig(**{limit: 2})).decode(encoded)
    assert caught.value.status == 400
    assert message in caught.value.message
