"""The Anthropic SDK: messages with its stream, parse and tool helpers."""

from typing import Any

import anthropic
from anthropic import beta_tool
from scenario import DESCRIBE, MODEL, QUESTION, WEATHER_QUESTION, City, base_url, get_weather, report

CLIENT = anthropic.Anthropic(base_url=base_url(), api_key="none")
TOOL: Any = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def ask(question: str) -> Any:
    return {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": question}]}


def text() -> str:
    return CLIENT.messages.create(**ask(QUESTION)).content[0].text


def stream() -> list[str]:
    with CLIENT.messages.stream(**ask(QUESTION)) as events:
        return list(events.text_stream)


def structured() -> dict[str, Any]:
    return CLIENT.messages.parse(**ask(DESCRIBE), output_format=City).parsed_output.model_dump()


def tools() -> list[Any]:
    with CLIENT.messages.stream(**ask(WEATHER_QUESTION), tools=[TOOL]) as events:
        blocks = events.get_final_message().content
    return [{"name": block.name, "arguments": block.input} for block in blocks if block.type == "tool_use"]


def loop() -> str:
    runner = CLIENT.beta.messages.tool_runner(**ask(WEATHER_QUESTION), tools=[beta_tool(get_weather)])
    return runner.until_done().content[0].text


report(text=text, stream=stream, structured=structured, tools=tools, loop=loop)
