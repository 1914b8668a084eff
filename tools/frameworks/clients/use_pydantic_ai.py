"""An agent of pydantic-ai with its defaults. It gets structured answers as calls of a tool."""

import asyncio
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse, ToolCallPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from scenario import CALL_FINAL_RESULT, MODEL, QUESTION, WEATHER_QUESTION, City, base_url, get_weather, report

LLM = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{base_url()}/v1", api_key="none"))


WEATHER_AGENT = Agent(LLM, tools=[get_weather])


def text() -> str:
    return Agent(LLM).run_sync(QUESTION).output


def stream() -> list[str]:
    async def collect() -> list[str]:
        async with Agent(LLM).run_stream(QUESTION) as run:
            return [piece async for piece in run.stream_text(delta=True, debounce_by=None)]

    return asyncio.run(collect())


def structured() -> dict[str, Any]:
    return Agent(LLM, output_type=City).run_sync(CALL_FINAL_RESULT).output.model_dump()


def tools() -> list[Any]:
    messages = WEATHER_AGENT.run_sync(WEATHER_QUESTION).all_messages()
    parts = [part for message in messages if isinstance(message, ModelResponse) for part in message.parts]
    calls = [part for part in parts if isinstance(part, ToolCallPart)]
    return [{"name": call.tool_name, "arguments": call.args_as_dict()} for call in calls]


def loop() -> str:
    return WEATHER_AGENT.run_sync(WEATHER_QUESTION).output


report(text=text, stream=stream, structured=structured, tools=tools, loop=loop)
