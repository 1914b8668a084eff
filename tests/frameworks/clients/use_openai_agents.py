"""openai-agents with its defaults, which are the Responses API."""

import asyncio
import json
from typing import Any

import openai
from agents import (
    Agent,
    Runner,
    ToolCallItem,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel
from scenario import DESCRIBE, MODEL, QUESTION, WEATHER, WEATHER_QUESTION, base_url, report

set_tracing_disabled(disabled=True)
set_default_openai_client(openai.AsyncOpenAI(base_url=f"{base_url()}/v1", api_key="none"))


class City(BaseModel):
    city: str
    population: int


@function_tool
def get_weather(city: str) -> str:
    """Tells the weather."""
    return WEATHER


WEATHER_AGENT = Agent(name="weather", model=MODEL, tools=[get_weather])


def text() -> Any:
    return Runner.run_sync(Agent(name="text", model=MODEL), QUESTION).final_output


def stream() -> list[str]:
    async def collect() -> list[str]:
        events = Runner.run_streamed(Agent(name="text", model=MODEL), QUESTION).stream_events()
        return [
            event.data.delta
            async for event in events
            if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent)
        ]

    return asyncio.run(collect())


def structured() -> dict[str, Any]:
    return Runner.run_sync(Agent(name="city", model=MODEL, output_type=City), DESCRIBE).final_output.model_dump()


def tools() -> list[Any]:
    items = Runner.run_sync(WEATHER_AGENT, WEATHER_QUESTION).new_items
    calls = [item.raw_item for item in items if isinstance(item, ToolCallItem)]
    return [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls]


def loop() -> Any:
    return Runner.run_sync(WEATHER_AGENT, WEATHER_QUESTION).final_output


def streamed_loop() -> Any:
    async def run() -> Any:
        streamed = Runner.run_streamed(WEATHER_AGENT, WEATHER_QUESTION)
        async for _ in streamed.stream_events():
            pass
        return streamed.final_output

    return asyncio.run(run())


def stored_loop() -> Any:
    """The server keeps the conversation; each request sends only what is new."""
    return Runner.run_sync(WEATHER_AGENT, WEATHER_QUESTION, auto_previous_response_id=True).final_output


report(
    text=text,
    stream=stream,
    structured=structured,
    tools=tools,
    loop=loop,
    streamed_loop=streamed_loop,
    stored_loop=stored_loop,
)
