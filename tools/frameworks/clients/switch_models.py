"""One conversation of openai-agents with two models. The first model talks, the second calls a tool."""

import openai
from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from scenario import QUESTION, WEATHER_QUESTION, base_url, get_weather, report

set_tracing_disabled(disabled=True)
client = openai.AsyncOpenAI(base_url=f"{base_url()}/v1", api_key="none")
first, second = (OpenAIChatCompletionsModel(model=name, openai_client=client) for name in ("first", "second"))
talker = Agent(name="talker", model=first)
reporter = Agent(name="reporter", model=second, tools=[function_tool(get_weather)])


def converse() -> list[str]:
    """The last answer of each agent."""
    begun = Runner.run_sync(talker, QUESTION)
    continued = Runner.run_sync(reporter, [*begun.to_input_list(), {"role": "user", "content": WEATHER_QUESTION}])
    return [begun.final_output, continued.final_output]


report(once=converse, again=converse)
