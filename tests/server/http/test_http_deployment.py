"""What deployments use: the load in a header, prompts of another stage."""

import json

import pytest

from tests.server.http.conftest import MESSAGES, TEXT

FORMAT = "endpoint-load-metrics-format"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TEXT", "TEXT named_metrics.kv_cache_usage_perc=0.0, named_metrics.num_requests_waiting=0.0"),
        ("json", "JSON " + json.dumps({"named_metrics": {"kv_cache_usage_perc": 0.0, "num_requests_waiting": 0.0}})),
        ("BIN", None),
    ],
)
def test_load_is_reported_in_the_requested_format(server, name, expected):
    for path, body in (("/v1/completions", {"prompt": "Hello"}), ("/v1/chat/completions", {"messages": MESSAGES})):
        response = server.post(path, body, headers={FORMAT: name})
        assert response.headers.get("endpoint-load-metrics") == expected
        assert "endpoint-load-metrics" not in server.post(path, body).headers


def test_forwarded_token_ids_replace_the_conversation(server, engine):
    body = server.chat(kv_transfer_params={"prompt_token_ids": [5, 6, 7]}, return_token_ids=True).json()
    assert body["prompt_token_ids"] == [5, 6, 7]
    assert [prompt for prompt, _ in engine.requests.values()] == [[5, 6, 7]]
    assert body["choices"][0]["message"]["content"] == TEXT


def test_forwarded_token_ids_are_ignored_where_the_messages_are_needed(server, engine):
    assert server.chat(kv_transfer_params={"prompt_token_ids": [5]}, echo=True).status_code == 200
    assert [5] not in [prompt for prompt, _ in engine.requests.values()]


@pytest.mark.parametrize("ids", [[], [-1], [1.5], ["1"], [True], "abc", 5, [49152]])
def test_bad_forwarded_token_ids_are_rejected(server, ids):
    response = server.chat(kv_transfer_params={"prompt_token_ids": ids})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "kv_transfer_params.prompt_token_ids")


def test_probes_carry_a_request_id_if_responses_do(serve):
    server = serve(enable_request_id_headers=True)
    assert len(server.get("/health").headers["x-request-id"]) == 32
    assert server.get("/health", headers={"x-request-id": "Custom"}).headers["x-request-id"] == "Custom"
