"""What deployments use: the load in a header, prompts of another stage, own middleware."""

import json

import pytest

from server.errors import ConfigError
from server.routes.middleware import load_middleware
from tests.server.http import middleware_of_a_user
from tests.server.http.conftest import MESSAGES, TEXT

FORMAT = "endpoint-load-metrics-format"
USERS = middleware_of_a_user.__name__


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


def test_own_middleware_sees_every_request_and_the_last_one_is_outermost(serve):
    server = serve(middleware=(f"{USERS}.named", f"{USERS}.Named"), api_keys=("key",))
    for path, status in (("/health", 200), ("/v1/models", 401), ("/metrics", 200)):
        response = server.get(path)
        assert (response.status_code, response.headers["x-order"]) == (status, "function, class")


def test_streams_pass_through_own_middleware(serve):
    server = serve(middleware=(f"{USERS}.named",))
    assert server.stream_lines("/v1/completions", {"prompt": "Hello"})[-1] == "[DONE]"


def test_failing_middleware_is_a_500(serve):
    assert serve(middleware=(f"{USERS}.refuses",)).get("/v1/models").status_code == 500


@pytest.mark.parametrize("name", ["no.such.module", f"{USERS}.Missing", f"{USERS}.NEITHER", "word", "", ".x"])
def test_middleware_that_cannot_be_loaded_is_a_configuration_error(name):
    with pytest.raises(ConfigError, match="--middleware"):
        load_middleware([name])


def test_probes_carry_a_request_id_if_responses_do(serve):
    server = serve(enable_request_id_headers=True)
    assert len(server.get("/health").headers["x-request-id"]) == 32
    assert server.get("/health", headers={"x-request-id": "Custom"}).headers["x-request-id"] == "Custom"
