"""The scenario for clients whose functions take and return fields of OpenAI's chat completions."""

import json
from collections.abc import Callable
from typing import Any

from scenario import DESCRIBE, QUESTION, WEATHER, WEATHER_QUESTION, City

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def ask(question: str) -> list[Any]:
    """A conversation that begins with this question."""
    return [{"role": "user", "content": question}]


class Features:
    """Tests the features of a chat API, each with a request that `complete` sends."""

    def __init__(self, complete: Callable[..., Any]) -> None:
        self._complete = complete

    def text(self) -> str | None:
        return self._message(ask(QUESTION)).content

    def stream(self) -> list[str | None]:
        return [chunk.choices[0].delta.content for chunk in self._complete(messages=ask(QUESTION), stream=True)]

    def structured(self) -> dict[str, Any]:
        return json.loads(self._message(ask(DESCRIBE), response_format=City).content)

    def tools(self) -> list[Any]:
        calls = self._message(ask(WEATHER_QUESTION), tools=[TOOL]).tool_calls
        return [{"name": call.function.name, "arguments": json.loads(call.function.arguments)} for call in calls]

    def loop(self) -> str | None:
        messages = ask(WEATHER_QUESTION)
        messages.append(self._message(messages, tools=[TOOL]))
        calls = messages[-1].tool_calls
        messages += [{"role": "tool", "tool_call_id": call.id, "content": WEATHER} for call in calls]
        return self._message(messages, tools=[TOOL]).content

    def _message(self, messages: list[Any], **fields: Any) -> Any:
        return self._complete(messages=messages, **fields).choices[0].message
