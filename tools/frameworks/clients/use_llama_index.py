"""LlamaIndex: `OpenAILike` with an agent of its own."""

import asyncio
from typing import Any

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from scenario import CALL_CITY, MODEL, QUESTION, WEATHER_QUESTION, City, base_url, get_weather, report

LLM = OpenAILike(
    model=MODEL,
    api_base=f"{base_url()}/v1",
    api_key="none",
    is_chat_model=True,
    is_function_calling_model=True,
    context_window=4096,
)


def ask(question: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=question)]


def text() -> Any:
    return LLM.chat(ask(QUESTION)).message.content


def stream() -> list[Any]:
    return [chunk.delta for chunk in LLM.stream_chat(ask(QUESTION))]


def structured() -> dict[str, Any]:
    return LLM.as_structured_llm(City).chat(ask(CALL_CITY)).raw.model_dump()


def tools() -> list[Any]:
    response = LLM.chat_with_tools([FunctionTool.from_defaults(get_weather)], user_msg=WEATHER_QUESTION)
    return [{"name": c.tool_name, "arguments": c.tool_kwargs} for c in LLM.get_tool_calls_from_response(response)]


def loop() -> str:
    async def run() -> str:
        agent = FunctionAgent(tools=[get_weather], llm=LLM)
        return str(await agent.run(WEATHER_QUESTION))

    return asyncio.run(run())


report(text=text, stream=stream, structured=structured, tools=tools, loop=loop)
