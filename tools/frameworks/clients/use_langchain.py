"""LangChain: `ChatOpenAI` with its defaults."""

from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from scenario import DESCRIBE, MODEL, QUESTION, WEATHER_QUESTION, City, base_url, get_weather, report

LLM = ChatOpenAI(model=MODEL, base_url=f"{base_url()}/v1", api_key="none")


WEATHER_TOOL = tool(get_weather)


def text() -> Any:
    return LLM.invoke(QUESTION).content


def stream() -> list[Any]:
    return [chunk.content for chunk in LLM.stream(QUESTION)]


def structured() -> dict[str, Any]:
    return LLM.with_structured_output(City).invoke(DESCRIBE).model_dump()


def tools() -> list[Any]:
    calls = LLM.bind_tools([WEATHER_TOOL]).invoke(WEATHER_QUESTION).tool_calls
    return [{"name": call["name"], "arguments": call["args"]} for call in calls]


def loop() -> Any:
    llm = LLM.bind_tools([WEATHER_TOOL])
    messages: list[Any] = [HumanMessage(WEATHER_QUESTION)]
    messages.append(llm.invoke(messages))
    messages += [WEATHER_TOOL.invoke(call) for call in messages[-1].tool_calls]
    return llm.invoke(messages).content


report(text=text, stream=stream, structured=structured, tools=tools, loop=loop)
