"""Tool calls over HTTP; tests/server/generation/test_tools.py has the grammars of their text."""

import pytest

from server.config import ModelFiles
from server.renderers.hf import HfRenderer
from tests.server.generation.requests import NAMED, TIME, WEATHER
from tests.server.http.conftest import assert_rejected

ARGUMENTS = '{"city": "Saint-\\"Denis\\" } ]", "days": 3}'
CALLS = '[{"name": "get_weather", "parameters": ' + ARGUMENTS + '}, {"name": "get_time", "parameters": {}}]'


def guided_of(engine):
    ((_, params),) = engine.requests.values()
    return params.guided


def calls_of(choice):
    return [(call["function"]["name"], call["function"]["arguments"]) for call in choice["message"]["tool_calls"]]


def call_deltas(server, **fields):
    """The pieces of calls in the chunks of a stream, and all its deltas."""
    deltas = [chunk["choices"][0]["delta"] for chunk in server.stream_chat(**fields)]
    return [delta["tool_calls"] for delta in deltas if "tool_calls" in delta], deltas


def test_named_tool_is_called_with_the_whole_text(server, engine, encode):
    engine.reply = encode(ARGUMENTS)
    (choice,) = server.chat_completion(tools=[WEATHER, TIME], tool_choice=NAMED)["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["id"].startswith("chatcmpl-tool-")
    assert call["function"] == {"name": "get_weather", "arguments": ARGUMENTS}
    assert choice["message"]["content"] == ""
    assert choice["finish_reason"] == "stop"
    pieces, _ = call_deltas(server, tools=[WEATHER], tool_choice=NAMED)
    assert ["name" in call["function"] for (call,) in pieces] == [True] + [False] * (len(pieces) - 1)
    assert len(pieces) > 4


@pytest.mark.parametrize("tokens_per_step", [1, 2, 7, 1000])
def test_required_tools_are_read_from_the_array(server, engine, encode, tokens_per_step):
    engine.reply, engine.tokens_per_step = encode(CALLS), tokens_per_step
    fields = {"tools": [WEATHER, TIME], "tool_choice": "required"}
    (choice,) = server.chat_completion(**fields)["choices"]
    assert calls_of(choice) == [("get_weather", ARGUMENTS), ("get_time", "{}")]
    assert choice["finish_reason"] == "tool_calls"
    pieces, deltas = call_deltas(server, **fields)
    assert len({call["id"] for piece in pieces for call in piece if "id" in call}) == 2
    assert all("content" not in delta for delta in deltas[1:])


def test_arguments_cut_by_the_limit_are_still_returned(server, engine, encode):
    engine.reply = encode(CALLS)
    (choice,) = server.chat_completion(tools=[WEATHER, TIME], tool_choice="required", max_tokens=20)["choices"]
    ((_, arguments),) = calls_of(choice)
    assert ARGUMENTS.startswith(arguments)
    assert choice["finish_reason"] == "length"


def test_tools_with_choice_none_do_not_constrain_the_text(server, engine):
    choice = server.chat(tools=[WEATHER], tool_choice="none").json()["choices"][0]
    assert choice["message"]["content"] == " Paris, the city of light."
    assert "tool_calls" not in choice["message"]
    assert guided_of(engine) is None


@pytest.mark.parametrize("fields", [{}, {"tool_choice": "auto"}], ids=["default", "auto"])
def test_tool_choice_auto_needs_a_parser(server, engine, fields):
    """See tests/server/generation/test_tools.py for other tool choices that are rejected."""
    response = server.chat(tools=[WEATHER], **fields)
    assert response.status_code == 400
    assert "requires --enable-auto-tool-choice and --tool-call-parser" in response.json()["error"]["message"]
    assert not engine.requests


def test_a_model_with_a_format_of_its_own_needs_no_parser(serve, renderer, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    monkeypatch.setattr(renderer, "files", ModelFiles(tmp_path, tmp_path))
    choice = serve(generation_config="vllm").chat(tools=[TIME], tool_choice="auto").json()["choices"][0]
    assert choice["message"]["content"] == " Paris, the city of light."


HERMES = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
AUTO_CALLS = (
    'Let me look.\n<tool_call>\n{"name": "get_weather", "arguments": ' + ARGUMENTS + "}\n</tool_call>\n"
    '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
)


@pytest.mark.parametrize("tokens_per_step", [1, 3, 1000])
def test_the_model_chooses_tools(serve, engine, encode, tokens_per_step):
    engine.reply, engine.tokens_per_step = encode(AUTO_CALLS), tokens_per_step
    server = serve(**HERMES)
    (choice,) = server.chat_completion(tools=[WEATHER, TIME])["choices"]
    assert calls_of(choice) == [("get_weather", ARGUMENTS), ("get_time", "{}")]
    assert choice["message"]["content"] == "Let me look.\n"
    assert choice["finish_reason"] == "tool_calls"
    pieces, _ = call_deltas(server, tools=[WEATHER, TIME], tool_choice="auto")
    for indices in ([call["index"] for call in piece] for piece in pieces):
        assert len(indices) == len(set(indices)), "instructor and the client's stream helper expect it"


def test_only_the_first_call_is_sent_without_parallel_calls(serve, engine, encode):
    engine.reply = encode(AUTO_CALLS)
    (choice,) = serve(**HERMES).chat_completion(tools=[WEATHER], parallel_tool_calls=False)["choices"]
    assert [name for name, _ in calls_of(choice)] == ["get_weather"]


def test_special_tokens_reach_the_parser(serve, engine, encode, renderer):
    """SmolLM's tokenizer has <|im_start|>, and no markers of calls, among its special tokens."""
    engine.reply = renderer.tokenizer.encode("<|im_start|>", add_special_tokens=False)
    server = serve(**HERMES)
    assert server.chat(tools=[TIME]).json()["choices"][0]["message"]["content"] == "<|im_start|>"
    assert server.chat().json()["choices"][0]["message"]["content"] == ""


def test_malformed_calls_of_a_whole_response_are_content(serve, engine, encode):
    call = '<tool_call>{"name": "get_time", "arguments": {"a": [1}}</tool_call>'
    engine.reply = encode(call)
    choice = serve(**HERMES).chat(tools=[TIME]).json()["choices"][0]
    assert choice["message"]["content"] == call
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


def strict(tool):
    return tool | {"function": tool["function"] | {"strict": True}}


def test_calls_are_free_without_strict_tools_and_in_formats_without_grammar(serve, engine):
    serve(**HERMES).chat(tools=[WEATHER])
    serve(enable_auto_tool_choice=True, tool_call_parser="phi4_mini_json").chat(tools=[strict(WEATHER)])
    assert [params.guided for _, params in engine.requests.values()] == [None, None]


def test_a_constraint_of_the_request_takes_the_place_of_strict_tools(serve, engine):
    server = serve(**HERMES)
    server.chat(tools=[strict(TIME)])
    server.chat(tools=[strict(TIME)], structured_outputs={"regex": "ab"})
    found = [params.guided for _, params in engine.requests.values()]
    assert [guided.kind for guided in found] == ["grammar", "regex"]


@pytest.mark.parametrize("choice", ["required", "auto"])
def test_a_schema_that_does_not_compile_is_a_400(serve, choice):
    broken = strict({"function": {"name": "f", "parameters": {"properties": {"a": {"type": "nothing"}}}}})
    response = serve(**HERMES).chat(tools=[TIME, broken], tool_choice=choice)
    assert_rejected(response, "tools")


def test_the_format_is_told_from_the_model(serve, engine, encode, renderer, monkeypatch, caplog):
    engine.reply = encode('[TOOL_CALLS]get_time[ARGS]{"zone": "UTC"}')
    monkeypatch.setattr(HfRenderer, "tool_template", "[TOOL_CALLS]")
    with caplog.at_level("INFO"):
        server = serve(enable_auto_tool_choice=True, tool_call_parser="auto")
    assert "--tool-call-parser auto: mistral, by the model's chat template" in caplog.text
    (call,) = server.chat(tools=[TIME]).json()["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "get_time", "arguments": '{"zone": "UTC"}'}


def test_a_model_without_a_format_is_served_with_a_warning(serve, engine, encode, caplog):
    engine.reply = encode('<tool_call>{"name": "get_time", "arguments": {}}</tool_call>')
    server = serve(enable_auto_tool_choice=True, tool_call_parser="auto")
    assert "the model's files name no format, so hermes is used" in caplog.text
    assert server.chat(tools=[TIME]).json()["choices"][0]["finish_reason"] == "tool_calls"


def test_every_token_is_reported_also_those_of_markers(serve, engine, encode):
    engine.reply = encode(AUTO_CALLS)
    fields = {"n": 2, "temperature": 1, "logprobs": True, "return_token_ids": True}
    for choice in serve(**HERMES).chat_completion(tools=[WEATHER, TIME], **fields)["choices"]:
        assert choice["token_ids"] == [*engine.reply, 2]
        assert len(choice["logprobs"]["content"]) == len(choice["token_ids"])
        assert choice["finish_reason"] == "tool_calls"
