"""The real model, used through the SDKs of OpenAI and Anthropic; responses outlive a drain and a restart."""

import asyncio
import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, NotFoundError

from tests.e2e.server_process import ServerProcess
from tests.waiting import wait_until

MODEL = "smol"
IGNORE_EOS = {"ignore_eos": True}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0}
"""The newest SDKs have no argument for it."""
ASKED: dict[str, Any] = {
    "model": MODEL,
    "system": "You answer questions.",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}
CAPITAL = "What is the capital of France?"
ENDLESS: Any = {"model": MODEL, "input": "Tell me a story.", "extra_body": {"ignore_eos": True}}


@pytest.mark.smoke
def test_capital_of_france_is_paris(client):
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=32)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_thirty_two_concurrent_streams_give_the_text_of_each_alone(exact_client):
    client = exact_client
    prompts = [f"Question {i}: what is {i} plus {i}? Answer:" for i in range(32)]

    async def run() -> list[str]:
        async with AsyncOpenAI(base_url=client.base_url, api_key="none", max_retries=0) as aclient:

            async def one(prompt: str) -> str:
                stream = await aclient.completions.create(
                    model=MODEL, prompt=prompt, temperature=0, max_tokens=8, stream=True, extra_body=IGNORE_EOS
                )
                return "".join([c.choices[0].text async for c in stream])

            return await asyncio.gather(*(one(p) for p in prompts))

    concurrent = asyncio.run(run())
    alone = [
        client.completions.create(model=MODEL, prompt=p, temperature=0, max_tokens=8, extra_body=IGNORE_EOS)
        .choices[0]
        .text
        for p in prompts[::4]  # some of them: one after another they take long
    ]
    assert concurrent[::4] == alone


@pytest.mark.smoke
def test_json_schema_is_followed(client):
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "population": {"type": "integer", "minimum": 0, "maximum": 99_999_999},
        },
        "required": ["city", "population"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Describe Paris as JSON."}],
        temperature=0,
        max_tokens=80,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
    )
    answered = json.loads(answer.choices[0].message.content or "")
    assert set(answered) == {"city", "population"}
    assert isinstance(answered["population"], int)


@pytest.fixture(scope="module")
def anthropic(server: ServerProcess) -> Iterator[Any]:
    """The SDK, connected to the server that all tests share."""
    from anthropic import Anthropic  # takes a second, also of a run without these tests

    with Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_the_sdk_of_anthropic_gets_an_answer_and_counts_its_tokens(anthropic):
    message = anthropic.messages.create(**ASKED, max_tokens=32, extra_body=GREEDY)
    (block,) = message.content
    assert block.type == "text"
    assert "Paris" in block.text
    assert message.stop_reason == "end_turn"
    assert anthropic.messages.count_tokens(**ASKED).input_tokens == message.usage.input_tokens


def test_a_stream_of_anthropic_s_sdk_stops_at_a_sequence(anthropic):
    with anthropic.messages.stream(**ASKED, max_tokens=32, extra_body=GREEDY, stop_sequences=["Paris"]) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text
    assert "Paris" not in text
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "Paris")


def test_client_creates_streams_and_continues(client):
    first = client.responses.create(model=MODEL, input=CAPITAL, temperature=0, max_output_tokens=32)
    assert "Paris" in first.output_text
    with client.responses.stream(model=MODEL, input=CAPITAL, temperature=0, max_output_tokens=32) as stream:
        assert stream.get_final_response().output_text == first.output_text
    second = client.responses.create(model=MODEL, input="Say it again.", previous_response_id=first.id)
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.total_tokens


def test_a_response_in_the_background_is_cancelled(server, client):
    response = client.responses.create(**ENDLESS, background=True)
    wait_until(lambda: server.metric("vllm:num_requests_running") == 1)
    assert client.responses.cancel(response.id).status == "cancelled"
    assert client.responses.retrieve(response.id).status == "cancelled"
    wait_until(lambda: server.metric("vllm:num_requests_running") == 0)


def test_a_drain_waits_for_the_background_and_a_file_outlives_the_server(start_tiny_server, tmp_path):
    arguments = ("--responses-store-file", str(tmp_path / "responses.db"), "--max-model-len", "512")
    with start_tiny_server(*arguments, "--shutdown-timeout", "200") as server:
        response = server.openai().responses.create(**ENDLESS, background=True, max_output_tokens=60)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(200) == 0
    with start_tiny_server(*arguments) as server:
        kept = server.openai().responses.retrieve(response.id)
        assert (kept.status, kept.usage is not None and kept.usage.output_tokens) == ("incomplete", 60)


def test_a_drain_ends_what_takes_too_long(start_server, tmp_path):
    arguments = ("--responses-store-file", str(tmp_path / "responses.db"))
    with start_server(*arguments, "--shutdown-timeout", "0") as server:
        client = server.openai()
        response = client.responses.create(**ENDLESS, background=True)
        wait_until(lambda: server.metric("vllm:num_requests_running") == 1)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    with start_server(*arguments) as server:
        kept = server.openai().responses.retrieve(response.id)
        assert kept.status == "failed"
        assert kept.error is not None
        assert "shutting down" in kept.error.message
        with pytest.raises(NotFoundError):
            server.openai().responses.retrieve("resp_other")
