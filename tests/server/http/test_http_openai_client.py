"""The real `openai` client works with the server."""

import asyncio

import openai
import pytest

TEXT = " Paris, the city of light."
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


def test_client_reads_a_chat_completion(client):
    answer = client.chat.completions.create(model="smol", messages=MESSAGES, logprobs=True, top_logprobs=2)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs.content[0].top_logprobs[1].token == " Paris"


def test_client_reads_a_chat_stream_with_usage(client):
    stream = client.chat.completions.create(
        model="smol", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-1].usage.completion_tokens == 8


def test_clients_stream_helper_assembles_the_message(client):
    with client.chat.completions.stream(model="smol", messages=MESSAGES) as stream:
        assert stream.get_final_completion().choices[0].message.content == TEXT


def test_client_reads_tool_calls(client, engine, encode):
    engine.reply = encode('[{"name": "f", "parameters": {"a": 1}}]')
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}}]
    answer = client.chat.completions.create(model="smol", messages=MESSAGES, tools=tools, tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("f", '{"a": 1}')
    assert answer.choices[0].finish_reason == "tool_calls"


def test_client_sends_extra_parameters_of_vllm(client, engine):
    client.chat.completions.create(model="smol", messages=MESSAGES, extra_body={"top_k": 5, "min_p": 0.1})
    ((_, params),) = engine.requests.values()
    assert (params.top_k, params.min_p) == (5, 0.1)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "other"}, openai.NotFoundError),
        ({"model": "smol", "temperature": 9}, openai.BadRequestError),
        ({"model": "smol", "extra_body": {"top_k": -2}}, openai.BadRequestError),
    ],
    ids=str,
)
def test_client_raises_the_class_of_each_error(client, fields, error):
    with pytest.raises(error) as caught:
        client.chat.completions.create(messages=MESSAGES, **fields)
    assert caught.value.body["message"]


def test_wrong_key_is_an_authentication_error(serve):
    server = serve(api_keys=("right",))
    with server.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    with server.client(api_key="right") as client:
        assert client.models.list().data


def test_error_in_mid_stream_is_raised(client, engine):
    engine.fails_after = 3
    with pytest.raises(openai.APIError, match="the grammar became too large"):
        list(client.chat.completions.create(model="smol", messages=MESSAGES, stream=True))


async def test_client_reads_many_streams_at_once(server, engine):
    engine.step_s = 0.002
    async with server.async_client() as client:

        async def read(number):
            prompt = f"Number {number}"
            stream = await client.completions.create(model="smol", prompt=prompt, stream=True, max_tokens=6, echo=True)
            return prompt, "".join([chunk.choices[0].text async for chunk in stream])

        answers = await asyncio.gather(*map(read, range(32)))
    assert all(text == prompt + " Paris, the city of light" for prompt, text in answers)
    assert len(engine.requests) == 32
