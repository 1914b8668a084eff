"""/v1/messages and /v1/messages/count_tokens through the Anthropic SDK: bodies, events, stops and errors."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import msgspec
import pytest

from server.http_body.response_body import ANTHROPIC, error_response
from tests.server.http.conftest import MODEL, PATIENT_S, LiveServer

REPLY = " Paris, the city of light."
USER = {"role": "user", "content": "What is the capital of France?"}
WEATHER = {
    "name": "get_weather",
    "description": "Tells the weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TIME = {"name": "get_time", "input_schema": {}}
CALLS = (
    'Let me look.<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
)
HERMES: dict[str, Any] = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}


def connect(server: LiveServer, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        **{"base_url": server.url, "api_key": "none", "max_retries": 0, "timeout": PATIENT_S} | options
    )


def create(client: anthropic.Anthropic, **fields: Any) -> Any:
    """A message, which the SDK joins from a stream too."""
    asked = {"model": MODEL, "max_tokens": 100, "messages": [USER]} | fields
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    message = client.messages.create(**asked)
    assert without_ids(streamed) == without_ids(message)
    return message


def without_ids(message: Any) -> dict[str, Any]:
    unlike = {"id": True, "content": {"__all__": {"id", "signature"}}}
    return dict(message.model_dump(exclude=unlike, exclude_none=True))


def stream_events(server: LiveServer, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    """The names and data of a stream's events."""
    body = {"model": MODEL, "max_tokens": 100, "messages": [USER], "stream": True} | fields
    text = server.post("/v1/messages", body).text
    events = [event.split("\n") for event in text.removesuffix("\n\n").split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in events]


@pytest.fixture
def client(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with connect(server) as client:
        yield client


def test_a_message(client, encode):
    message = create(client)
    assert message.id.startswith("chatcmpl-")
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
    (block,) = message.content
    assert (block.type, block.text) == ("text", REPLY)
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens == len(encode(REPLY)) + 1
    assert message.usage.cache_read_input_tokens is None


def test_a_streams_events_are_those_of_vllm(server, engine):
    engine.tokens_per_step = 4
    events = stream_events(server)
    assert all(name == data["type"] for name, data in events)
    start, stop = events[0][1], events[-2][1]
    message = start["message"]
    assert list(start) == ["type", "message"]
    assert message == {
        "id": message["id"],
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": MODEL,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": message["usage"]["input_tokens"], "output_tokens": 0},
    }
    assert message["usage"]["input_tokens"] > 5
    assert events[1][1] == {"type": "content_block_start", "content_block": {"type": "text", "text": ""}, "index": 0}
    texts = [data["delta"]["text"] for name, data in events if name == "content_block_delta"]
    assert len(texts) > 1
    assert "".join(texts) == REPLY
    assert events[-3][1] == {"type": "content_block_stop", "index": 0}
    assert stop["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert stop["usage"] == {"input_tokens": message["usage"]["input_tokens"], "output_tokens": 8}
    assert events[-1][1] == {"type": "message_stop"}


def test_a_stop_sequence_ends_a_message(client):
    message = create(client, stop_sequences=["city"])
    assert message.content[0].text == " Paris, the "
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "city")


def test_an_empty_answer_is_an_empty_text(client, engine):
    engine.reply = []
    message = client.messages.create(model=MODEL, max_tokens=9, messages=[USER])
    assert [block.text for block in message.content] == [""]


@pytest.mark.parametrize("tokens_per_step", [1, 1000])
@pytest.mark.parametrize("reasons", [False, True], ids=["tools", "thinking and tools"])
def test_thinking_text_and_calls_are_blocks_in_this_order(serve, engine, encode, tokens_per_step, reasons):
    engine.reply, engine.tokens_per_step = (
        encode(f"<think>\nHmm.</think>\n\n{CALLS}" if reasons else CALLS),
        tokens_per_step,
    )
    with connect(serve(**HERMES, **({"reasoning_parser": "deepseek_r1"} if reasons else {}))) as client:
        message = create(client, tools=[WEATHER, TIME])
    *thinking, text, weather, time = message.content
    assert [(block.type, block.thinking.strip(), len(block.signature)) for block in thinking] == (
        [("thinking", "Hmm.", 32)] if reasons else []
    )
    assert (text.type, text.text.strip()) == ("text", "Let me look.")
    assert (weather.type, weather.name, weather.input) == ("tool_use", "get_weather", {"city": "Paris"})
    assert (time.name, time.input) == ("get_time", {})
    assert weather.id != time.id
    assert message.stop_reason == "tool_use"


def test_a_call_that_the_limit_cuts_has_no_input(client, engine, encode):
    engine.reply = encode('{"city": "Paris"}')
    choice = {"type": "tool", "name": "get_weather"}
    message = create(client, tools=[WEATHER], tool_choice=choice, max_tokens=3)
    assert message.content[0].input == {}
    assert message.stop_reason == "max_tokens"


def test_counting_gives_the_tokens_of_the_message(client):
    conversation: dict[str, Any] = {"system": "Be short.", "messages": [USER], "tools": [TIME]}
    counted = client.messages.count_tokens(model=MODEL, **conversation)
    message = create(client, **conversation, tool_choice={"type": "none"})
    assert counted.input_tokens == message.usage.input_tokens
    assert counted.model_extra == {"context_management": {"original_input_tokens": counted.input_tokens}}


@pytest.mark.parametrize("has_prefix_cache", [False, True])
def test_tokens_of_the_cache_are_counted_apart(serve, engine, has_prefix_cache):
    engine.num_cached_tokens = 4
    engine.info = msgspec.structs.replace(engine.info, has_prefix_cache=has_prefix_cache)
    with connect(serve(enable_prompt_tokens_details=True)) as client:
        usage = create(client).usage
        num_tokens = client.messages.count_tokens(model=MODEL, messages=[USER]).input_tokens
    created = num_tokens - 4 if has_prefix_cache else 0
    assert usage.cache_read_input_tokens == 4
    assert usage.cache_creation_input_tokens == created
    assert usage.input_tokens == num_tokens - 4 - created


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"model": "other"}, anthropic.NotFoundError, "model"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens"),
        ({"extra_body": {"thread": {"type": "create"}}}, anthropic.BadRequestError, "thread"),
        ({"stop_sequences": ["x" * 2000]}, anthropic.BadRequestError, "stop_sequences"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_an_error_names_the_field(client, fields, error, param):
    with pytest.raises(error) as caught:
        create(client, **fields)
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["param"] == param
    is_missing = error is anthropic.NotFoundError
    assert body["error"]["type"] == ("not_found_error" if is_missing else "invalid_request_error")


def test_thinking_without_a_parser_names_the_clients_field(client):
    with pytest.raises(anthropic.BadRequestError) as caught:
        create(client, max_tokens=2000, thinking={"type": "enabled", "budget_tokens": 1024})
    body: Any = caught.value.body
    assert body["error"]["param"] == "thinking"
    assert "`thinking` needs a server with a --reasoning-parser" in body["error"]["message"]


def test_a_failure_ends_the_stream_with_an_error_event(server, engine):
    engine.fails_after = 3
    events = stream_events(server)
    name, data = events[-1]
    assert (name, data["type"]) == ("error", "error")
    assert data["error"]["message"] == "the grammar became too large"
    assert [name for name, _ in events if name.startswith("message")] == ["message_start"]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/messages", {"authorization": "Bearer secret"}, 200),
        ("/v1/messages", {"x-api-key": "secret"}, 200),
        ("/v1/messages", {"x-api-key": "secret", "authorization": "Bearer other"}, 200),
        ("/v1/messages/count_tokens", {"x-api-key": "secret"}, 200),
        ("/v1/messages", {"x-api-key": "secre"}, 401),
        ("/v1/messages", {"x-api-key": ""}, 401),
        ("/v1/messages", {}, 401),
        ("/v1/chat/completions", {"x-api-key": "secret"}, 200),
    ],
)
def test_a_key_may_be_in_the_header_of_anthropics_api(serve, path, headers, status):
    body = {"model": MODEL, "max_tokens": 1, "messages": [USER]}
    response = serve(api_keys=("secret",)).post(path, body, headers=headers)
    assert response.status_code == status
    if status == 401:
        error = response.json()["error"]
        assert error["type"] == ("Unauthorized" if "chat" in path else "authentication_error")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_an_image_has_its_own_name_in_the_error(server, path):
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    body = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": [image]}]}
    response = server.post(path, body)
    assert response.status_code == 400
    assert "message content of type `image` is not supported" in response.json()["error"]["message"]


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_errors_outside_of_the_route_have_anthropics_format(serve, prefix):
    """415: before the body is decoded; 405: the method."""
    server = serve(root_path="/api")
    path = prefix + "/v1/messages"
    encoded = server.post(path, {}, headers={"content-encoding": "gzip"})
    assert (encoded.status_code, encoded.json()["error"]["type"]) == (415, "invalid_request_error")
    wrong_method = server.get(path)
    assert (wrong_method.status_code, wrong_method.json()["type"]) == (405, "error")
    assert wrong_method.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("status", "type"),
    [(400, "invalid_request_error"), (413, "request_too_large"), (429, "rate_limit_error"), (500, "api_error")],
)
def test_every_status_has_anthropics_type(status, type):
    body = ANTHROPIC.to_body(error_response("m", type="T", code=status))
    assert (body["type"], body["error"].type) == ("error", type)


def test_system_messages_move_to_the_start_if_the_template_rejects_them_elsewhere(
    engine, model_path, serve, use_template
):
    template = (model_path / "chat_template.jinja").read_text()
    guard = "{% if message.role == 'system' and not loop.first %}{{ raise_exception('first') }}{% endif %}"
    strict = template.replace("{% for message in messages %}", "{% for message in messages %}" + guard)
    assert strict != template
    for chosen, beginning in ((template, "You help. <|im_end|>"), (strict, "You help. Be short.<|im_end|>")):
        use_template(chosen)
        server = serve()
        with connect(server) as client:
            create(client, messages=(USER, {"role": "system", "content": "Be short."}), system="You help. ")
        *_, (token_ids, _) = engine.requests.values()
        prompt = server.parts.renderer.detokenize(token_ids)
        assert prompt.startswith(f"<|im_start|>system\n{beginning}\n<|im_start|>user")


def test_a_loop_of_tools_sends_the_whole_conversation(serve, engine, encode, renderer):
    """The SDK asks for a kept conversation; were that ignored, the model would see the last turn only."""
    engine.reply = encode('<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>')

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Tells the weather."""
        return f"sunny in {city}"

    with connect(serve(**HERMES)) as client:
        asked: Any = {"model": MODEL, "max_tokens": 100, "messages": [USER], "tools": [get_weather]}
        client.beta.messages.tool_runner(**asked, max_iterations=2).until_done()
    _, (token_ids, _) = engine.requests.values()
    prompt = renderer.detokenize(token_ids)
    assert prompt.index("capital of France") < prompt.index("sunny in Paris")


def test_a_coding_agents_request(serve, engine):
    """The fields, headers and query that Claude Code sends."""
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    body = {
        "model": MODEL,
        "max_tokens": 100,
        "stream": True,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=d1d48;"},
            {"type": "text", "text": "You are an agent."} | cached,
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "List the files."} | cached]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "I use bash.", "signature": "abc"},
                    {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"command": "ls"}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "a.py", "is_error": False}],
            },
        ],
        "tools": [{"name": "bash", "description": "Runs", "input_schema": {"type": "object"}} | cached],
        "metadata": {"user_id": "user_1"},
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    }
    headers = {"anthropic-beta": "claude-code-20250219", "anthropic-version": "2023-06-01", "x-api-key": "none"}
    response = serve(**HERMES).post("/v1/messages?beta=true", body, headers=headers)
    assert response.status_code == 200
    assert response.text.startswith("event: message_start\n")
    assert response.text.rstrip().endswith('data: {"type":"message_stop"}')


@pytest.mark.parametrize(
    ("template", "options", "prompt"),
    [
        ("effort {{ reasoning_effort }}", {}, "effort none"),
        ("{% if enable_thinking %}think{% else %}do not think{% endif %}", {}, "do not think"),
        ("{% if reasoning_effort == 'low' %}low{% else %}max{% endif %}", {}, "low"),
        ("{{ {'low': 'little', 'high': 'much'}[reasoning_effort] + '.' }}", {}, "little."),
        ("effort {{ reasoning_effort }}", {"anthropic_disabled_thinking_effort": "medium"}, "effort medium"),
    ],
    ids=["known", "switch", "ignored", "rejected", "set by the operator"],
)
def test_disabled_thinking_is_the_least_effort_that_the_template_knows(
    serve, engine, renderer, use_template, template, options, prompt
):
    use_template(template)
    with connect(serve(**options)) as client:
        create(client, thinking={"type": "disabled"})
    *_, (token_ids, _) = engine.requests.values()
    assert renderer.detokenize(token_ids) == prompt
