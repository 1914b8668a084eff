"""/v1/responses over HTTP, mostly with the real `openai` client."""

import json

import openai
import pytest
from pydantic import BaseModel

from tests.server.http.conftest import TEXT

INPUT = "What is the capital of France?"
ARGUMENTS = '{"city": "Rome", "days": 3}'
CALL = '<tool_call>\n{"name": "get_weather", "arguments": ' + ARGUMENTS + "}\n</tool_call>"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Tells the weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}


class City(BaseModel):
    name: str


@pytest.fixture
def tool_client(serve):
    """A client of a server whose model may choose tools."""
    with serve(enable_auto_tool_choice=True, tool_call_parser="hermes").client() as client:
        yield client


@pytest.fixture
def reasoning_client(serve):
    """A client of a server whose model reasons and may choose tools."""
    options = {"reasoning_parser": "qwen3", "enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
    with serve(**options).client() as client:
        yield client


def respond(client, **fields):
    """A response, which says the same as a stream."""
    asked = {"model": "smol", "input": INPUT} | fields
    with client.responses.stream(**asked) as stream:
        streamed = stream.get_final_response()
    response = client.responses.create(**asked)
    assert said(streamed) == said(response)
    return response


def said(response):
    texts = [[part.text for part in getattr(item, "content", None) or ()] for item in response.output]
    calls = [(item.name, item.arguments) for item in response.output if item.type == "function_call"]
    return [item.type for item in response.output], texts, calls, response.status, response.incomplete_details


def prompt_of(engine, renderer):
    """The text of the last prompt that the engine has received."""
    *_, (token_ids, _) = engine.requests.values()
    return renderer.tokenizer.decode(token_ids, skip_special_tokens=False)


def names(events):
    return [event.type.removeprefix("response.") for event in events]


def test_client_reads_a_response(client):
    response = client.responses.create(model="smol", input=INPUT)
    assert response.output_text == TEXT
    assert (response.status, response.incomplete_details, response.error) == ("completed", None, None)
    assert response.usage.total_tokens == response.usage.input_tokens + 8
    assert response.id.startswith("resp_")
    assert (response.tool_choice, response.tools, response.parallel_tool_calls) == ("none", [], True)


def test_client_parses_structured_output(client, engine, encode):
    engine.reply = encode('{"name": "Paris"}')
    response = client.responses.parse(model="smol", input=INPUT, text_format=City)
    assert response.output_parsed == City(name="Paris")
    ((_, params),) = engine.requests.values()
    assert params.guided.kind == "json_schema"


def test_clients_stream_helper_accepts_all_events(client):
    with client.responses.stream(model="smol", input=INPUT) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == TEXT
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == TEXT
    assert [event.response.status for event in events[:2]] == ["in_progress", "in_progress"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert names(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * len(deltas),
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


def test_events_carry_their_name_and_no_done_follows(server):
    text = server.post("/v1/responses", {"input": INPUT, "stream": True}).text
    for event in text.strip().split("\n\n"):
        name, data = event.split("\n")
        assert name.removeprefix("event: ") == json.loads(data.removeprefix("data: "))["type"]


def test_tool_calls_become_items_of_their_own(tool_client, engine, encode):
    engine.reply = encode(f"Let me see.\n{CALL}\n{CALL}")
    response = respond(tool_client, tools=[WEATHER])
    message, call, other = response.output
    assert message.content[0].text.strip() == "Let me see."
    assert (call.type, call.name, call.arguments) == ("function_call", "get_weather", ARGUMENTS)
    assert call.arguments == other.arguments
    assert call.call_id != other.call_id
    assert response.tools[0].name == "get_weather"


def test_a_tools_output_continues_the_conversation(tool_client, engine, renderer):
    call = {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": ARGUMENTS}
    output = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
    items = [{"role": "user", "content": INPUT}, call, output]
    assert tool_client.responses.create(model="smol", input=items, tools=[WEATHER]).output_text == TEXT
    assert "sunny" in prompt_of(engine, renderer)


def test_reasoning_text_and_calls_are_items(reasoning_client, engine, encode):
    engine.reply = encode("<think>Rome is warm.</think>Yes.\n" + CALL)
    response = respond(reasoning_client, tools=[WEATHER])
    reasoning, message, call = response.output
    assert reasoning.content[0].text == "Rome is warm."
    assert (message.content[0].text.strip(), call.arguments) == ("Yes.", ARGUMENTS)
    assert 0 < response.usage.output_tokens_details.reasoning_tokens < response.usage.output_tokens
    items = [{"role": "user", "content": INPUT}, *response.output]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    assert reasoning_client.responses.create(model="smol", input=items, tools=[WEATHER]).status == "completed"


def test_reasoning_is_left_out_if_the_request_says_so(reasoning_client, engine, encode):
    engine.reply = encode("<think>Hm.</think>Yes.")
    fields = {"include": ["message.output_text.logprobs"], "extra_body": {"include_reasoning": False}}
    (message,) = respond(reasoning_client, **fields).output
    assert (message.content[0].text, message.content[0].logprobs) == ("Yes.", None)


def test_tools_without_a_parser_are_text_as_in_vllm(client, engine, encode):
    engine.reply = encode(CALL)
    assert client.responses.create(model="smol", input=INPUT, tools=[WEATHER]).output_text.startswith("<tool_call>")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}], ids=["required", "named"])
def test_forced_tool_choice(client, engine, encode, choice):
    named = not isinstance(choice, str)
    engine.reply = encode(ARGUMENTS if named else '[{"name": "get_weather", "parameters": ' + ARGUMENTS + "}]")
    (call,) = respond(client, tools=[WEATHER], tool_choice=choice).output
    assert (call.name, call.arguments) == ("get_weather", ARGUMENTS)


def test_a_call_that_is_cut_off_is_not_reported(client, engine, encode):
    engine.reply = encode('[{"name": "get_weather", "parameters": ' + ARGUMENTS + "}]")
    response = client.responses.create(
        model="smol", input=INPUT, tools=[WEATHER], tool_choice="required", max_output_tokens=12
    )
    assert response.output == []
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_instructions_come_first_and_are_not_kept(client, engine, renderer):
    first = client.responses.create(model="smol", input="Hello, I am Ada.", instructions="Be brief.")
    assert "system\nBe brief." in prompt_of(engine, renderer)
    engine.requests.clear()
    client.responses.create(model="smol", input=INPUT, previous_response_id=first.id, instructions="Be kind.")
    prompt = prompt_of(engine, renderer)
    assert "Be brief." not in prompt
    assert prompt.index("Be kind.") < prompt.index("I am Ada.") < prompt.index(TEXT) < prompt.index(INPUT)


def test_log_probabilities_are_shown_if_included(client):
    fields = {"model": "smol", "input": INPUT, "top_logprobs": 2}
    include = ["message.output_text.logprobs"]
    (part,) = client.responses.create(**fields, include=include).output[0].content
    assert "".join(entry.token for entry in part.logprobs) == TEXT
    assert len(part.logprobs[0].top_logprobs) == 2
    (part,) = client.responses.create(**fields).output[0].content
    assert part.logprobs is None
    events = list(client.responses.create(**fields, include=include, stream=True))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(entry.token for delta in deltas for entry in delta.logprobs) == TEXT


def test_an_unfinished_message_is_continued(client, engine, renderer):
    item = {"type": "message", "role": "assistant", "status": "incomplete", "content": "The capital is"}
    client.responses.create(model="smol", input=[{"role": "user", "content": INPUT}, item])
    assert prompt_of(engine, renderer).endswith("The capital is")


def test_effective_parameters_are_reported(client):
    response = client.responses.create(
        model="smol",
        input=INPUT,
        max_output_tokens=9,
        temperature=0.5,
        metadata={"a": "b"},
        user="u",
        truncation="auto",
    )
    assert (response.max_output_tokens, response.temperature) == (9, 0.5)
    assert response.top_p == 0.9  # of the model's generation_config.json
    assert (response.metadata, response.truncation) == ({"a": "b"}, "auto")


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"input": [{"type": "function_call", "call_id": "a"}]}, "input", "needs `name`"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input", "input[0].content[0]"),
        ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input", "ncrypted content is not supported"),
        ({"prompt": {"id": "p"}}, "prompt", "prompt template is not supported"),
        ({"background": True, "store": False}, "background", "background can only be used when `store` is true"),
        ({"tool_choice": "required"}, "tool_choice", "must be specified with 'tools'"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "not found in 'tools'"),
        ({"tools": [WEATHER, {"type": "function"}]}, "tools", "tools[1]"),
        ({"tools": [{"type": "custom", "name": "x", "format": {"type": "grammar"}}]}, "tools", "grammar format"),
        ({"max_output_tokens": 100_000}, "max_output_tokens", "max_output_tokens=100000"),
        ({"include": ["x"]}, "include", "Invalid enum value"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format", "text.format.schema"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": 3}}}},
            "text.format",
            "`text.format`",
        ),
        ({"text": {"format": {"type": "text"}}, "structured_outputs": {"regex": "a"}}, "structured_outputs", "both"),
        ({"model": "other"}, "model", "does not exist"),
        ({"previous_response_id": "resp_1"}, "response_id", "Response with id 'resp_1' not found."),
    ],
)
def test_faults_name_the_field(server, fields, param, message):
    answer = server.post("/v1/responses", {"input": INPUT} | fields)
    error = answer.json()["error"]
    assert answer.status_code == (404 if param in ("model", "response_id") else 400)
    assert (error["param"], error["code"]) == (param, answer.status_code)
    assert message in error["message"]


def test_a_schema_that_the_engine_rejects_is_a_400_of_a_stream_too(server):
    text = {"format": {"type": "json_schema", "name": "x", "schema": {"type": 3}}}
    answer = server.post("/v1/responses", {"input": INPUT, "text": text, "stream": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "text.format")


def test_an_engine_failure_ends_the_stream_with_a_failed_response(client, engine):
    engine.fails_after = 2
    events = list(client.responses.create(model="smol", input=INPUT, stream=True))
    assert names(events)[-1] == "failed"
    assert events[-1].response.status == "failed"
    assert "grammar became too large" in events[-1].response.error.message
    with pytest.raises(openai.InternalServerError, match="grammar became too large"):
        client.responses.create(model="smol", input=INPUT)


def test_a_client_that_disconnects_ends_the_generation(client, engine, wait_until):
    engine.holds_after = 2
    with client.responses.create(model="smol", input=INPUT, stream=True) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                break
    wait_until(lambda: engine.aborted)


@pytest.mark.parametrize(("shows_details", "num_cached"), [(True, 4), (False, 0)], ids=["allowed", "default"])
def test_cached_tokens_are_reported_only_if_the_server_allows_it(serve, engine, shows_details, num_cached):
    engine.num_cached_tokens = 4
    usage = serve(enable_prompt_tokens_details=shows_details).client().responses.create(model="smol", input="Hi").usage
    assert usage.input_tokens_details.cached_tokens == num_cached
