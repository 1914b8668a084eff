"""Each request field: honoured, accepted as a hint, or refused by name."""

import json

import pytest

from server.types import GuidedDecoding

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
    ("n", 129),
    ("max_tokens", -1),
    ("max_tokens", 0),
    ("max_tokens", 513),
    ("min_tokens", -1),
    ("min_tokens", 17),
    ("seed", 2**63),
    ("seed", -(2**63) - 1),
    ("seed", 1.5),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", ["a"] * 65),
    ("stop", 3),
    ("stop_token_ids", [49152]),
    ("stop_token_ids", [-1]),
    ("allowed_token_ids", []),
    ("allowed_token_ids", [49152]),
    ("logit_bias", {"49152": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"a": 1}),
    ("logit_bias", {"5": 100.5}),
    ("logit_bias", {"5": -101}),
    ("bad_words", [""]),
    ("bad_words", ["a"] * 129),
    ("prompt_logprobs", -2),
    ("prompt_logprobs", 21),
    ("truncate_prompt_tokens", -2),
    ("stream", "yes"),
    ("stream_options", {"include_usage": True}),
    ("best_of", 2),
    ("request_id", ""),
    ("response_format", "json"),
    ("response_format", {"type": "json_schema"}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "a"}}),
    ("user_name", "unknown"),
]

REFUSED = [
    ("use_beam_search", True),
    ("length_penalty", 0.5),
    ("early_stopping", True),
    ("logits_processors", ["x"]),
    ("logprob_token_ids", [1]),
    ("watermarking", True),
    ("truncation_side", "right"),
    ("priority", 1),
    ("kv_transfer_params", {"a": 1}),
    ("ec_transfer_params", {"a": 1}),
    ("vllm_xargs", {"a": 1}),
    ("repetition_detection", {"max_pattern_size": 3, "min_count": 2}),
    ("thinking_token_budget", 10),
    ("stream_interval", 5),
    ("routed_experts_prompt_start", 1),
    ("mm_processor_kwargs", {"a": 1}),
    ("media_io_kwargs", {"a": {}}),
]

REFUSED_BY_COMPLETIONS = [("suffix", " end")]

REFUSED_BY_CHAT = [
    ("audio", {"voice": "alloy"}),
    ("functions", [{"name": "f"}]),
    ("function_call", "auto"),
    ("prediction", {"type": "content", "content": "x"}),
    ("verbosity", "high"),
    ("web_search_options", {"a": 1}),
    ("modalities", ["text", "audio"]),
]

HINTS = {
    "user": "me",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "safety_identifier": "x",
    "session_id": "s",
    "cache_salt": "salt",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "guided_decoding_backend": "xgrammar",
}

DEFAULTS_OF_REFUSED = {
    "use_beam_search": False,
    "length_penalty": 1.0,
    "early_stopping": False,
    "logits_processors": None,
    "priority": 0,
    "vllm_xargs": {},
    "kv_transfer_params": None,
    "thinking_token_budget": -1,
    "truncation_side": "left",
    "best_of": 1,
}


def assert_refuses(response, param):
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "BadRequestError"
    assert error["code"] == 400
    assert error["param"] == param
    assert error["message"]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_bad_value_is_a_400_that_names_the_field(server, engine, name, value):
    assert_refuses(server.complete(**{name: value}), name)
    assert not engine.requests


@pytest.mark.parametrize(("name", "value"), [pair for pair in BAD_VALUES if pair not in [("max_tokens", 0)]])
def test_chat_checks_the_same_fields(server, name, value):
    fields = {"max_tokens": 16} | {name: value}
    assert_refuses(server.chat(**fields), name)


@pytest.mark.parametrize(("name", "value"), REFUSED + REFUSED_BY_COMPLETIONS)
def test_completions_refuse_what_they_cannot_honour(server, name, value):
    assert_refuses(server.complete(**{name: value}), name)


@pytest.mark.parametrize(("name", "value"), REFUSED + REFUSED_BY_CHAT)
def test_chat_refuses_what_it_cannot_honour(server, name, value):
    assert_refuses(server.chat(**{name: value}), name)


def test_hints_and_defaults_change_nothing(server, engine):
    assert server.complete(**HINTS, **DEFAULTS_OF_REFUSED).json()["choices"][0]["text"] == " Paris, the city of light."
    assert server.chat(**HINTS, **DEFAULTS_OF_REFUSED, modalities=["text"]).status_code == 200
    for _, params in engine.requests.values():
        assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 1.0, 0, 0.0)


@pytest.mark.parametrize("value", [-2, 21])
def test_completions_check_logprobs(server, value):
    assert_refuses(server.complete(logprobs=value), "logprobs")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
        ({"logprobs": True, "top_logprobs": -2}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": 513}, "max_completion_tokens"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"reasoning_effort": "some"}, "reasoning_effort"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"content": "Hello"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
    ],
    ids=str,
)
def test_chat_checks_its_own_fields(server, fields, param):
    assert_refuses(server.chat(**fields), param)


def test_prompt_logprobs_do_not_go_with_a_stream(server):
    assert_refuses(server.complete(stream=True, prompt_logprobs=1), "prompt_logprobs")


def test_greedy_sampling_does_not_go_with_several_choices(server):
    assert_refuses(server.complete(temperature=0, n=2), "n")


def test_all_sampling_values_reach_the_engine(server, engine, encode):
    values = {
        "max_tokens": 20,
        "min_tokens": 3,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "seed": 42,
        "stop_token_ids": [7, 8, 7],
        "ignore_eos": True,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": -100, "6": 2.5},
        "allowed_token_ids": [1, 2, 3],
        "bad_words": [" bad"],
        "logprobs": 2,
        "prompt_logprobs": 3,
    }
    assert server.complete(**values).status_code == 200
    ((prompt, params),) = engine.requests.values()
    assert prompt == encode("The capital of France is")
    for name in values.keys() - {"stop_token_ids", "logit_bias", "allowed_token_ids", "bad_words"}:
        assert getattr(params, name) == values[name], name
    assert params.stop_token_ids == (7, 8)
    assert params.logit_bias == {5: -100.0, 6: 2.5}
    assert params.allowed_token_ids == (1, 2, 3)
    assert tuple(encode(" bad")) in params.bad_words_ids


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ({"top_k": -1}, "top_k", 0),
        ({"seed": -1}, "seed", None),
        ({"temperature": 0.001}, "temperature", 0.01),
        ({"temperature": 0, "top_p": 0.5}, "top_p", 1.0),
        ({"temperature": 0, "top_k": 5}, "top_k", 0),
        ({"logprobs": 0}, "logprobs", 0),
        ({}, "logprobs", None),
        ({}, "max_tokens", 16),
    ],
    ids=str,
)
def test_values_are_normalised_as_vllm_does(server, engine, given, name, expected):
    assert server.complete(**given).status_code == 200
    ((_, params),) = engine.requests.values()
    assert getattr(params, name) == expected


def test_all_logprobs_can_be_had_where_the_server_allows_it(serve, engine):
    assert serve(max_logprobs=-1).complete(logprobs=-1, max_tokens=1).status_code == 200
    ((_, params),) = engine.requests.values()
    assert params.logprobs == 49152


def test_seed_moves_on_from_choice_to_choice(server, engine):
    assert server.complete(n=3, seed=2**63 - 2).status_code == 200
    assert sorted(params.seed for _, params in engine.requests.values()) == [-(2**63), 2**63 - 2, 2**63 - 1]


def test_chat_may_fill_the_rest_of_the_context(server, engine):
    server.chat()
    ((prompt, params),) = engine.requests.values()
    assert params.max_tokens == 512 - len(prompt)


def test_output_limit_is_lowered_to_the_rest_of_the_context(server, engine):
    assert server.complete(prompt=[5] * 500, max_tokens=100).status_code == 200
    ((_, params),) = engine.requests.values()
    assert params.max_tokens == 12


@pytest.mark.parametrize("length", [512, 513, 5000])
def test_prompt_that_leaves_no_room_is_refused_with_the_limit(server, length):
    response = server.complete(prompt=[5] * length)
    assert response.status_code == 400
    assert "512" in response.json()["error"]["message"]


def test_token_outside_the_vocabulary_is_refused(server):
    assert_refuses(server.complete(prompt=[5, 49152]), "prompt")


def test_prompt_is_truncated_from_the_left(server, engine):
    assert server.complete(prompt=[5, 6, 7, 8], truncate_prompt_tokens=2).status_code == 200
    ((prompt, _),) = engine.requests.values()
    assert prompt == [7, 8]


def test_template_kwargs_carry_the_reasoning_effort(server, renderer, monkeypatch):
    seen = []
    render = renderer.render_chat_async
    monkeypatch.setattr(
        renderer, "render_chat_async", lambda messages, options: seen.append(options) or render(messages, options)
    )
    assert server.chat(reasoning_effort="none", chat_template_kwargs={"a": 1}).status_code == 200
    assert seen[0].chat_template_kwargs == {"a": 1, "reasoning_effort": "none", "enable_thinking": False}


def test_conversation_is_rendered_with_the_models_template(server, engine, renderer):
    server.chat(messages=[{"role": "user", "content": [{"type": "text", "text": "Bonjour"}]}])
    ((prompt, _),) = engine.requests.values()
    text = renderer.detokenize(prompt)
    assert text.endswith("<|im_start|>user\nBonjour<|im_end|>\n<|im_start|>assistant\n")


def test_final_message_is_continued(server, engine, renderer):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The capital"}]
    response = server.chat(messages=messages, continue_final_message=True)
    ((prompt, _),) = engine.requests.values()
    assert renderer.detokenize(prompt).endswith("<|im_start|>assistant\nThe capital")
    assert response.json()["choices"][0]["message"]["role"] == "assistant"


def test_final_message_is_echoed_before_its_continuation(server):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It is"}]
    fields = {"messages": messages, "continue_final_message": True, "echo": True}
    assert server.chat(**fields).json()["choices"][0]["message"]["content"] == "It is Paris, the city of light."
    lines = server.stream_lines("/v1/chat/completions", fields)
    contents = [json.loads(line)["choices"][0]["delta"]["content"] for line in lines[:-1]]
    assert "".join(contents) == "It is Paris, the city of light."


def test_prompt_text_is_returned_on_request(server):
    text = server.chat(return_prompt_text=True).json()["prompt_text"]
    assert text.endswith("<|im_start|>assistant\n")
    body = {"messages": [{"role": "user", "content": "Hello"}], "return_prompt_text": True}
    first, second, *_ = server.stream_lines("/v1/chat/completions", body)
    assert json.loads(first)["prompt_text"] == text
    assert "prompt_text" not in json.loads(second)


@pytest.mark.parametrize(
    ("fields", "guided"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, GuidedDecoding("json_object")),
        ({"structured_outputs": {"json_object": True}}, GuidedDecoding("json_object")),
        ({"structured_outputs": {"regex": "a+"}}, GuidedDecoding("regex", "a+")),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, GuidedDecoding("choice", '["yes", "no"]')),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, GuidedDecoding("grammar", 'root ::= "a"')),
        ({"guided_regex": "a+"}, GuidedDecoding("regex", "a+")),
        ({"guided_choice": ["yes", "no"]}, GuidedDecoding("choice", '["yes", "no"]')),
        ({"guided_grammar": 'start: "a"'}, GuidedDecoding("grammar", 'start: "a"')),
        ({"guided_json": '{"type": "integer"}'}, GuidedDecoding("json_schema", '{"type": "integer"}')),
        ({"structured_outputs": {"json": {"type": "integer"}}}, GuidedDecoding("json_schema", '{"type": "integer"}')),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}},
            GuidedDecoding("json_schema", '{"type": "integer"}'),
        ),
        (
            {"structured_outputs": {"json_object": True, "disable_any_whitespace": True}},
            GuidedDecoding("json_schema", '{"type": "object", "x-guidance": {"whitespace_flexible": false}}'),
        ),
        (
            {"guided_json": {"type": "integer"}, "guided_whitespace_pattern": " ?"},
            GuidedDecoding("json_schema", '{"type": "integer", "x-guidance": {"whitespace_pattern": " ?"}}'),
        ),
    ],
    ids=str,
)
def test_constraint_reaches_the_engine(server, engine, fields, guided):
    assert server.complete(**fields).status_code == 200
    assert server.chat(**fields).status_code == 200
    assert [params.guided for _, params in engine.requests.values()] == [guided, guided]


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"json": {"type": "nonsense"}}},
        {"structured_outputs": {"json": "{"}},
        {"structured_outputs": {"json": "3"}},
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"choice": []}},
        {"structured_outputs": {"choice": [""]}},
        {"structured_outputs": {"grammar": "start: missing"}},
        {"structured_outputs": {"json_object": False}},
        {"structured_outputs": {"json_object": True, "regex": "a"}},
        {"structured_outputs": {"structural_tag": "{}"}},
        {"structured_outputs": {"disable_additional_properties": True, "json_object": True}},
        {"guided_json": {"type": "array", "uniqueItems": True}},
        {"guided_regex": "a", "guided_choice": ["a"]},
        {"guided_regex": "a", "response_format": {"type": "json_object"}},
        {"response_format": {"type": "structural_tag", "format": {}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "nonsense"}}}},
    ],
    ids=str,
)
def test_constraint_that_cannot_be_used_is_a_400(server, engine, fields):
    response = server.complete(**fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"]
    assert not engine.requests


def test_schema_nested_too_deeply_is_a_400(server):
    schema = {"type": "integer"}
    for _ in range(70):
        schema = {"type": "array", "items": schema}
    response = server.complete(guided_json=schema)
    assert response.status_code == 400
    assert "nested too deeply" in response.json()["error"]["message"]
