"""Fields of completion and chat requests: their ranges, and the fields that the server rejects by name."""

from typing import Any

import pytest

from base.errors import RequestError
from server.generation.completion_request import CompletionRequest
from server.generation.request import ChatRequest
from server.http_body.request_body import _warn
from tests.server.generation.requests import Model, decode

BAD_VALUES = [
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", "hot"),
    ("top_p", 0),
    ("top_p", 1.1),
    ("top_k", -2),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("presence_penalty", -2.1),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("frequency_penalty", 2.1),
    ("repetition_penalty", 0),
    ("repetition_penalty", -1),
    ("n", 0),
    ("n", -1),
    ("max_tokens", -1),
    ("min_tokens", -1),
    ("seed", 2**63),
    ("seed", -(2**63) - 1),
    ("seed", 1.5),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", 3),
    ("stop_token_ids", [-1]),
    ("logit_bias", {"a": 1}),
    ("bad_words", [""]),
    ("bad_words", ["a"] * 129),
    ("logprobs", -2),
    ("prompt_logprobs", -2),
    ("truncate_prompt_tokens", -2),
    ("stream", "yes"),
    ("stream_options", {"include_usage": True}),
    ("request_id", ""),
    ("response_format", "json"),
    ("response_format", {"type": "json_schema"}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "a"}}),
    ("media_io_kwargs", {"a": {}}),
    ("mm_processor_kwargs", {"a": 1}),
    ("spaces_between_special_tokens", False),
    ("truncation_side", "middle"),
    ("logprob_token_ids", [1]),
    ("use_beam_search", True),
    ("thinking_token_budget", -2),
    ("thinking_token_budget", 1.0),
    ("thinking_token_budget", True),
    ("thinking_token_budget", "10"),
]

IGNORED = [
    ("guided_json", {"type": "object"}),
    ("guided_choice", ["a"]),
]

IGNORED_IN_CHAT = [
    ("audio", {"voice": "alloy"}),
    ("functions", [{"name": "f"}]),
    ("function_call", "auto"),
    ("web_search_options", {"a": 1}),
]


def assert_rejects(model: Model, param: str, **fields: Any) -> None:
    with pytest.raises(RequestError) as caught:
        decode(model, **fields)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert caught.value.message


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_bad_value_is_rejected_with_the_name_of_its_field(model, name, value):
    assert_rejects(model, name, **{name: value})


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [(kind, *field) for kind in (CompletionRequest, ChatRequest) for field in IGNORED]
    + [(ChatRequest, *field) for field in IGNORED_IN_CHAT],
)
def test_field_that_vllm_ignores_too_is_logged_once(model, name, value, caplog):
    _warn.cache_clear()
    for _ in range(2):
        decode(model, **{name: value})
    assert [record.args for record in caplog.records] == [(name,)]


@pytest.mark.parametrize(("name", "value"), [("suffix", " end"), ("use_beam_search", True)])
def test_what_only_vllm_has_is_rejected_with_the_flag_for_it(name, value):
    with pytest.raises(RequestError, match="--engine vllm") as caught:
        decode(CompletionRequest, **{name: value})
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -2}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"reasoning_effort": "some"}, "reasoning_effort"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"echo": True}, "echo"),
        ({"return_prompt_text": True}, "return_prompt_text"),
    ],
    ids=str,
)
def test_chat_checks_its_own_fields(fields, param):
    assert_rejects(ChatRequest, param, **fields)


def test_prompt_logprobs_cannot_be_streamed(model):
    assert_rejects(model, "prompt_logprobs", stream=True, prompt_logprobs=1)


@pytest.mark.parametrize("request_id", ["a\nERROR forged", "a\rb", "a\x1b[31m", "a\u2028b", "a\n"])
def test_request_id_with_control_characters_is_rejected(model, request_id):
    """The id is logged: it must not forge a line of the log."""
    assert_rejects(model, "request_id", request_id=request_id)


@pytest.mark.parametrize("salt", ["", "a" * 129, "a/b", "a@b", "a\\b", "a\x00"], ids=ascii)
def test_cache_salts_are_checked_as_in_vllm(model, salt):
    assert_rejects(model, "cache_salt", cache_salt=salt)
    decode(model, cache_salt="a" * 128)
