"""Uses features of openai-agents that every API for its models has."""

import asyncio
import json
from typing import Any

from agents import Agent, Model, Runner, ToolCallItem, function_tool, set_tracing_disabled
from openai.types.responses import ResponseTextDeltaEvent
from scenario import DESCRIBE, QUESTION, WEATHER_QUESTION, City, get_weather

set_tracing_disabled(disabled=True)


class Features:
    """Agents that use one model. `model` is an object, or a name for the library's default API."""

    def __init__(self, model: str | Model) -> None:
        self._text_agent = Agent(name="text", model=model)
        self._city_agent = Agent(name="city", model=model, output_type=City)
        self.weather_agent = Agent(name="weather", model=model, tools=[function_tool(get_weather)])

    def text(self) -> Any:
        return Runner.run_sync(self._text_agent, QUESTION).final_output

    def stream(self) -> list[str]:
        async def collect() -> list[str]:
            events = Runner.run_streamed(self._text_agent, QUESTION).stream_events()
            return [
                event.data.delta
                async for event in events
                if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent)
            ]

        return asyncio.run(collect())

    def structured(self) -> dict[str, Any]:
        return Runner.run_sync(self._city_agent, DESCRIBE).final_output.model_dump()

    def tools(self) -> list[Any]:
        items = Runner.run_sync(self.weather_agent, WEATHER_QUESTION).new_items
        calls = [item.raw_item for item in items if isinstance(item, ToolCallItem)]
        return [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls]

    def loop(self) -> Any:
        return Runner.run_sync(self.weather_agent, WEATHER_QUESTION).final_output
