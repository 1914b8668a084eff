"""The real model, used through the `openai` client."""

import asyncio
import json

import pytest
from openai import AsyncOpenAI

MODEL = "smol"
IGNORE_EOS = {"ignore_eos": True}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


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
