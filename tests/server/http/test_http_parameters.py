"""Request fields: values reach the engine, bad values are a 400, ignored hints change nothing."""

import logging

import pytest

from tests.server.http.conftest import assert_rejected

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
}

CLIENTS_FIELDS = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}],
    "client_metadata": {"a": "b"},
    "chat_id": "c",
    "session_id": "s",
    "id": "i",
    "background_tasks": {"title_generation": True},
    "features": {"web_search": False},
    "model_item": {"id": "smol"},
    "tool_servers": [],
    "variables": {"{{USER_NAME}}": "me"},
    "functions": [],
    "function_call": "none",
}
"""Of Claude Code, Codex and Open WebUI."""

IGNORED = {
    "use_beam_search": False,
    "logits_processors": None,
    "priority": 3,
    "vllm_xargs": {"a": [1, "b"]},
    "data_parallel_rank": 0,
    "enable_thinking": True,
    "guided_json": None,
    "stream_interval": 1,
    "kv_transfer_params": {"do_remote_prefill": True},
    "thinking_token_budget": -1,
    "truncation_side": "left",
    "best_of": 5,
}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"temperature": 2.1}, id="range of the field"),
        pytest.param({"media_io_kwargs": {"image": {}}}, id="field without support"),
        pytest.param({"n": 16_385}, id="limit of the server"),
        pytest.param({"stop_token_ids": [49152]}, id="vocabulary of the model"),
    ],
)
def test_bad_value_is_a_400_that_names_its_field_at_both_endpoints(server, engine, fields):
    """One value per layer; tests/server/generation and tests/server/http_body check all values."""
    (name,) = fields
    assert_rejected(server.complete(**fields), name)
    assert_rejected(server.chat(**fields), name)
    assert not engine.requests


def test_fields_that_clients_send_anyway_are_not_logged(server, caplog):
    assert server.chat(**CLIENTS_FIELDS).status_code == 200
    body = {"input": "a"} | {name: CLIENTS_FIELDS[name] for name in ("client_metadata", "session_id")}
    assert server.post("/v1/responses", body).status_code == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_constraint_that_the_engine_rejects_is_a_400_that_names_its_field(server, stream):
    fields = {"structured_outputs": {"regex": "("}, "stream": stream}
    assert_rejected(server.complete(**fields), "structured_outputs")
    assert_rejected(server.chat(**fields), "structured_outputs")


def test_rejection_by_the_renderer_is_a_400(server):
    assert_rejected(server.chat(messages=[{"content": "Hello"}]), "messages")


def test_hints_and_fields_without_effect_change_nothing(server, engine):
    assert server.complete(**HINTS, **IGNORED).json()["choices"][0]["text"] == " Paris, the city of light."
    of_chat = {"modalities": ["audio"], "verbosity": "low", "functions": [{"name": "f"}], "function_call": "auto"}
    assert server.chat(**HINTS, **IGNORED, **of_chat).status_code == 200
    for _, params in engine.requests.values():  # as the model's generation_config.json
        assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.2, 0.9, 0, 0.0)


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
        "logprobs": 2,
        "prompt_logprobs": 3,
    }
    assert server.complete(**values).status_code == 200
    ((prompt, params),) = engine.requests.values()
    assert prompt == encode("The capital of France is")
    for name in values.keys() - {"stop_token_ids", "logit_bias", "allowed_token_ids"}:
        assert getattr(params, name) == values[name], name
    assert params.stop_token_ids == (7, 8)
    assert params.logit_bias == {5: -100.0, 6: 2.5}
    assert params.allowed_token_ids == (1, 2, 3)


def test_seed_differs_from_choice_to_choice(server, engine):
    assert server.complete(n=3, seed=2**63 - 2).status_code == 200
    assert sorted(params.seed for _, params in engine.requests.values()) == [-(2**63), 2**63 - 2, 2**63 - 1]


def test_final_message_is_continued(server, engine, renderer):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The capital"}]
    response = server.chat(messages=messages, continue_final_message=True)
    ((prompt, _),) = engine.requests.values()
    assert renderer.detokenize(prompt).endswith("<|im_start|>assistant\nThe capital")
    assert response.json()["choices"][0]["message"]["role"] == "assistant"


def test_request_takes_precedence_over_the_defaults(serve, engine):
    server = serve(override_generation_config={"temperature": 0.3, "top_p": 0.8, "max_new_tokens": 4})
    server.chat(temperature=0.9)
    server.complete(max_tokens=10)
    (_, chat), (_, completion) = engine.requests.values()
    assert (chat.temperature, chat.top_p, chat.max_tokens) == (0.9, 0.8, 4)
    assert (completion.temperature, completion.top_p, completion.max_tokens) == (0.3, 0.8, 4)
