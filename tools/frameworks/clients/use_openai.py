"""The `openai` client: chat completions with its parse and stream helpers."""

import json
from functools import partial
from typing import Any

import openai
from chat_features import TOOL, Features, ask
from scenario import DESCRIBE, MODEL, WEATHER_QUESTION, City, base_url, report

CLIENT = openai.OpenAI(base_url=f"{base_url()}/v1", api_key="none")
FEATURES = Features(partial(CLIENT.chat.completions.create, model=MODEL))


def structured() -> dict[str, Any]:
    parsed = CLIENT.chat.completions.parse(model=MODEL, messages=ask(DESCRIBE), response_format=City)
    return parsed.choices[0].message.parsed.model_dump()


def tools() -> list[Any]:
    with CLIENT.chat.completions.stream(model=MODEL, messages=ask(WEATHER_QUESTION), tools=[TOOL]) as events:
        calls = events.get_final_completion().choices[0].message.tool_calls
    return [{"name": call.function.name, "arguments": json.loads(call.function.arguments)} for call in calls]


report(text=FEATURES.text, stream=FEATURES.stream, structured=structured, tools=tools, loop=FEATURES.loop)
