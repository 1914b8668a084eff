"""The `openai` client: responses with parse and stream helpers."""

import json
from typing import Any

import openai
from scenario import DESCRIBE, MODEL, QUESTION, WEATHER, WEATHER_QUESTION, City, base_url, report

CLIENT = openai.OpenAI(base_url=f"{base_url()}/v1", api_key="none")
TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def outputs(calls: list[Any]) -> list[Any]:
    return [{"type": "function_call_output", "call_id": call.call_id, "output": WEATHER} for call in calls]


def text() -> str:
    return CLIENT.responses.create(model=MODEL, input=QUESTION).output_text


def stream() -> list[str]:
    events = CLIENT.responses.create(model=MODEL, input=QUESTION, stream=True)
    return [event.delta for event in events if event.type == "response.output_text.delta"]


def structured() -> dict[str, Any]:
    return CLIENT.responses.parse(model=MODEL, input=DESCRIBE, text_format=City).output_parsed.model_dump()


def tools() -> list[Any]:
    with CLIENT.responses.stream(model=MODEL, input=WEATHER_QUESTION, tools=[TOOL]) as events:
        calls = events.get_final_response().output
    return [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls]


def loop() -> str:
    items: list[Any] = [{"role": "user", "content": WEATHER_QUESTION}]
    calls = CLIENT.responses.create(model=MODEL, input=items, tools=[TOOL]).output
    return CLIENT.responses.create(model=MODEL, input=[*items, *calls, *outputs(calls)], tools=[TOOL]).output_text


report(text=text, stream=stream, structured=structured, tools=tools, loop=loop)
