"""Ends of an output and the reasons that are reported for them."""

import json

import pytest

from server.types import EngineOutput


def end_of(server, **fields):
    choice = server.complete(**fields).json()["choices"][0]
    return choice["text"], choice["finish_reason"], choice["stop_reason"]


def test_stop_string_is_cut_off_and_named(server, engine):
    assert end_of(server, stop=["nowhere", " city"]) == (" Paris, the", "stop", " city")
    assert len(engine.aborted) == 1, "the engine must stop"


def test_stop_string_is_kept_on_request(server):
    assert end_of(server, stop=" city", include_stop_str_in_output=True) == (" Paris, the city", "stop", " city")


def test_stop_string_that_ends_within_a_token_is_found(server):
    assert end_of(server, stop="he c") == (" Paris, t", "stop", "he c")


def test_stop_string_is_ignored_before_min_tokens(server, engine):
    engine.reply = [*engine.reply, *engine.reply]
    assert end_of(server, stop=" city", min_tokens=8)[0] == " Paris, the city of light. Paris, the"


def test_text_held_back_for_a_stop_string_is_not_lost(server):
    assert end_of(server, stop="light. And") == (" Paris, the city of light.", "stop", None)
    assert end_of(server, stop="city of hope", max_tokens=5) == (" Paris, the city of", "length", None)


def test_usage_counts_the_tokens_up_to_the_stop_string(server):
    assert server.complete(stop=" city").json()["usage"]["completion_tokens"] == 4


def test_stream_never_shows_part_of_a_stop_string(server):
    lines = server.stream_lines("/v1/completions", {"prompt": "a", "stop": ["the city of"]})
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert "".join(choice["text"] for choice in choices) == " Paris, "
    assert (choices[-1]["finish_reason"], choices[-1]["stop_reason"]) == ("stop", "the city of")


def test_end_of_sequence_has_no_stop_reason(server):
    assert end_of(server) == (" Paris, the city of light.", "stop", None)


def test_stop_token_is_cut_off_and_named(server, engine):
    city = engine.reply[3]
    assert end_of(server, stop_token_ids=[city]) == (" Paris, the", "stop", city)


def test_stop_token_is_kept_on_request(server, engine):
    city = engine.reply[3]
    assert end_of(server, stop_token_ids=[city], include_stop_str_in_output=True)[0] == " Paris, the city"


def test_end_of_sequence_token_given_as_stop_token_is_named_with_ignore_eos(server):
    assert end_of(server, stop_token_ids=[2], ignore_eos=True) == (" Paris, the city of light.", "stop", 2)


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
    last = json.loads(server.stream_lines(path, body)[-2])
    assert last["choices"][0]["finish_reason"] == "length"
