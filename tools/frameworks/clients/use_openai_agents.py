"""openai-agents with its defaults, which use the Responses API."""

import asyncio
from typing import Any

import openai
from agents import Runner, set_default_openai_client
from agents_features import Features
from scenario import MODEL, WEATHER_QUESTION, base_url, report_all

set_default_openai_client(openai.AsyncOpenAI(base_url=f"{base_url()}/v1", api_key="none"))
features = Features(MODEL)


def streamed_loop() -> Any:
    async def run() -> Any:
        streamed = Runner.run_streamed(features.weather_agent, WEATHER_QUESTION)
        async for _ in streamed.stream_events():
            pass
        return streamed.final_output

    return asyncio.run(run())


report_all(features, streamed_loop=streamed_loop)
