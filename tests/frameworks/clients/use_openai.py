"""The `openai` client: chat completions with its parse and stream helpers."""

import json
from typing import Any

import openai
from pydantic import BaseModel
from scenario import DESCRIBE, MODEL, QUESTION, WEATHER, WEATHER_QUESTION, base_url, report

CLIENT = openai.OpenAI(base_url=f"{base_url()}/v1", api_key="none")
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


def ask(question: str) -> Any:
    return [{"role": "user", "content": question}]


def text() -> str | None:
    return CLIENT.chat.completions.create(model=MODEL, messages=ask(QUESTION)).choices[0].message.content


def stream() -> list[str | None]:
    chunks = CLIENT.chat.completions.create(model=MODEL, messages=ask(QUESTION), stream=True)
    return [chunk.choices[0].delta.content for chunk in chunks]


def structured() -> dict[str, Any]:
    parsed = CLIENT.chat.completions.parse(model=MODEL, messages=ask(DESCRIBE), response_format=City)
    return parsed.choices[0].message.parsed.model_dump()


def tools() -> list[Any]:
    with CLIENT.chat.completions.stream(model=MODEL, messages=ask(WEATHER_QUESTION), tools=[TOOL]) as events:
        calls = events.get_final_completion().choices[0].message.tool_calls
    return [{"name": call.function.name, "arguments": json.loads(call.function.arguments)} for call in calls]


def loop() -> str | None:
    messages = ask(WEATHER_QUESTION)
    message = CLIENT.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL]).choices[0].message
    messages.append(message)
    messages += [{"role": "tool", "tool_call_id": call.id, "content": WEATHER} for call in message.tool_calls]
    return CLIENT.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL]).choices[0].message.content


report(text=text, stream=stream, structured=structured, tools=tools, loop=loop)
