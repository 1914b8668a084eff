"""Ends of an output and the reasons that are reported for them."""

import pytest

from server.types import EngineOutput
from tests.server.http.conftest import TEXT


def end_of(server, **fields):
    choice = server.complete(**fields).json()["choices"][0]
    return choice["text"], choice["finish_reason"], choice["stop_reason"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, (TEXT, "stop", None), id="end of sequence"),
        pytest.param({"stop": ["nowhere", " city"]}, (" Paris, the", "stop", " city"), id="string"),
        pytest.param({"stop": "he c"}, (" Paris, t", "stop", "he c"), id="string within a token"),
        pytest.param(
            {"stop": " city", "include_stop_str_in_output": True},
            (" Paris, the city", "stop", " city"),
            id="string kept",
        ),
        pytest.param({"stop": " city", "min_tokens": 5}, (TEXT, "stop", None), id="before min_tokens"),
        pytest.param({"stop": "light. And"}, (TEXT, "stop", None), id="held back"),
        pytest.param(
            {"stop": "city of hope", "max_tokens": 5},
            (" Paris, the city of", "length", None),
            id="held to the limit",
        ),
        pytest.param({"stop_token_ids": [2], "ignore_eos": True}, (TEXT, "stop", 2), id="stop token"),
    ],
)
def test_where_an_output_ends_and_why(server, fields, expected):
    assert end_of(server, **fields) == expected


def test_a_stop_string_ends_the_sequence_in_the_engine(server, engine):
    server.complete(stop=" city")
    assert len(engine.aborted) == 1


def test_usage_counts_the_tokens_up_to_the_stop_string(server):
    assert server.complete(stop=" city").json()["usage"]["completion_tokens"] == 4


def test_stream_never_shows_part_of_a_stop_string(server):
    choices = [chunk["choices"][0] for chunk in server.stream_completion(stop=["the city of"])]
    assert "".join(choice["text"] for choice in choices) == " Paris, "
    assert (choices[-1]["finish_reason"], choices[-1]["stop_reason"]) == ("stop", "the city of")


@pytest.mark.parametrize(("is_kept", "text"), [(False, " Paris, the"), (True, " Paris, the city")])
def test_a_stop_token_is_named_and_shown_only_on_request(server, engine, is_kept, text):
    city = engine.reply[3]
    fields = {"stop_token_ids": [city], "include_stop_str_in_output": is_kept}
    assert end_of(server, **fields) == (text, "stop", city)


def test_chat_reports_the_stop_reason(server):
    choice = server.chat(stop=",").json()["choices"][0]
    assert (choice["message"]["content"], choice["stop_reason"]) == (" Paris", ",")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_end_without_a_new_token_is_reported(server, engine, path, monkeypatch):
    async def generate(request_id, prompts, num_choices):
        yield EngineOutput(request_id=f"{request_id}-0", token_ids=engine.reply[:1])
        yield EngineOutput(request_id=f"{request_id}-0", finish_reason="length")

    monkeypatch.setattr(engine, "generate", generate, raising=True)
    body = {"prompt": "a"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "a"}]}
    answer = server.post(path, body).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 1
    last = server.stream(path, body)[-1]
    assert last["choices"][0]["finish_reason"] == "length"
