"""Tool calls of a real server, through the `openai` client; a grammar makes the small model write them."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from tests.e2e.conftest import MODEL_NAME, StartServer

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
ARGUMENTS = '{"city": "Zürich \\"🎉\\" </tool_call>", "more": {"a": [1, {}]}}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
TEXT = f"Let me look.\n{CALL}\n{CALL}"
QUESTION: Any = {"role": "user", "content": "What is the weather in Zürich?"}


@pytest.fixture(scope="module")
def agent(start_server: StartServer) -> Iterator[OpenAI]:
    words = ("--enable-auto-tool-choice", "--tool-call-parser", "auto", "--max-model-len", "2048")
    with start_server(*words) as server, server.openai() as client:
        yield client


def forced(text: str) -> dict[str, Any]:
    """The options with which the model writes this text."""
    outputs = {"structured_outputs": {"regex": re.escape(text)}}
    return {"model": MODEL_NAME, "tools": [WEATHER], "max_tokens": 300, "temperature": 0, "extra_body": outputs}


def test_calls_of_a_response(agent):
    (choice,) = agent.chat.completions.create(messages=[QUESTION], **forced(TEXT)).choices
    assert [call.function.arguments for call in choice.message.tool_calls] == [ARGUMENTS, ARGUMENTS]
    assert choice.message.content == "Let me look.\n"
    assert choice.finish_reason == "tool_calls"


def test_calls_of_a_stream(agent):
    with agent.chat.completions.stream(messages=[QUESTION], **forced(TEXT)) as stream:
        kinds = [event.type for event in stream]
        (choice,) = stream.get_final_completion().choices
    assert [call.function.arguments for call in choice.message.tool_calls or ()] == [ARGUMENTS, ARGUMENTS]
    assert [call.function.name for call in choice.message.tool_calls or ()] == ["get_weather", "get_weather"]
    assert choice.message.content == "Let me look.\n"
    assert choice.finish_reason == "tool_calls"
    assert kinds.count("tool_calls.function.arguments.delta") > 20
    assert kinds.count("tool_calls.function.arguments.done") == 2


def test_results_of_calls_reach_the_model(agent):
    call = agent.chat.completions.create(messages=[QUESTION], **forced(CALL)).choices[0].message
    result: Any = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "sunny"}
    messages: Any = [QUESTION, call, result]
    answer = agent.chat.completions.create(messages=messages, **forced("It is sunny.")).choices[0]
    assert answer.message.content == "It is sunny."
    assert answer.message.tool_calls is None
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "pick"}}], ids=["required", "named"]
)
def test_forced_calls_follow_the_schema(agent, choice):
    parameters = {"type": "object", "properties": {"city": {"enum": ["Rome", "Zürich"]}}, "required": ["city"]}
    tool: Any = {"type": "function", "function": {"name": "pick", "parameters": parameters | {"maxProperties": 1}}}
    stream = agent.chat.completions.create(
        model=MODEL_NAME,
        messages=[QUESTION],
        tools=[tool],
        tool_choice=choice,
        parallel_tool_calls=False,
        max_tokens=100,
        stream=True,
    )
    calls = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or ()]
    arguments = "".join(call.function.arguments or "" for call in calls)
    assert calls[0].function.name == "pick"
    assert json.loads(arguments)["city"] in ("Rome", "Zürich")
