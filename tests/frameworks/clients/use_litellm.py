"""LiteLLM: its provider `hosted_vllm`, which is its default for vLLM."""

import json
from typing import Any

import litellm
from pydantic import BaseModel
from scenario import DESCRIBE, MODEL, QUESTION, WEATHER, WEATHER_QUESTION, base_url, report

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class City(BaseModel):
    city: str
    population: int


def complete(messages: list[Any], **fields: Any) -> Any:
    return litellm.completion(
        model=f"hosted_vllm/{MODEL}", api_base=f"{base_url()}/v1", api_key="none", messages=messages, **fields
    )


def ask(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


def text() -> Any:
    return complete(ask(QUESTION)).choices[0].message.content


def stream() -> list[Any]:
    return [chunk.choices[0].delta.content for chunk in complete(ask(QUESTION), stream=True)]


def structured() -> Any:
    return json.loads(complete(ask(DESCRIBE), response_format=City).choices[0].message.content)


def tools() -> list[Any]:
    calls = complete(ask(WEATHER_QUESTION), tools=[TOOL]).choices[0].message.tool_calls
    return [{"name": call.function.name, "arguments": json.loads(call.function.arguments)} for call in calls]


def loop() -> Any:
    messages = ask(WEATHER_QUESTION)
    messages.append(complete(messages, tools=[TOOL]).choices[0].message)
    messages += [{"role": "tool", "tool_call_id": call.id, "content": WEATHER} for call in messages[-1].tool_calls]
    return complete(messages, tools=[TOOL]).choices[0].message.content


report(text=text, stream=stream, structured=structured, tools=tools, loop=loop)
