"""Clients of many models behind one port. The router's answers equal those of a server with one model."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from openai import OpenAI

from tests.router.router_process import RouterProcess, embedded
from tests.support.http_client import ask

TOOLS: Final = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--max-model-len", "4096"]
WEATHER: Final[Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ARGUMENTS: Final = '{"city": "Zürich \\"🎉\\" </tool_call>", "more": {"a": [1, {}]}}'
CALL: Final = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
QUESTION: Final[Any] = {"role": "user", "content": "What is the weather in Zürich?"}


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[RouterProcess]:
    folder = tmp_path_factory.mktemp("models")
    models = {
        "org/alpha": embedded(tiny_llama) | {"args": TOOLS, "aliases": ["alpha"]},
        "org/beta": embedded(tiny_llama) | {"args": [*TOOLS, "--seed", "1"]},
    }
    with RouterProcess(folder, models) as running:
        for name in models:
            assert ask(f"{running.url}/v1/models/{name}/load", {}).status == 200
        yield running


@pytest.fixture
def client(router: RouterProcess) -> Iterator[OpenAI]:
    with router.openai() as openai:
        yield openai


def forced(text: str) -> dict[str, Any]:
    """The options with which a model writes this text."""
    return {"max_tokens": 300, "temperature": 0, "extra_body": {"structured_outputs": {"regex": re.escape(text)}}}


def test_two_models_take_turns_in_one_conversation_with_tools(client):
    """The first model calls the tool, and the second reads the result, in streams and in whole answers."""
    for number in range(2):
        messages: list[Any] = [QUESTION]
        with client.chat.completions.stream(
            model="org/alpha", messages=messages, tools=[WEATHER], **forced(CALL)
        ) as stream:
            for _ in stream:
                pass
            call = stream.get_final_completion().choices[0].message
        assert call.tool_calls is not None
        assert call.tool_calls[0].function.arguments == ARGUMENTS
        messages += [call, {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": f"sunny {number}"}]
        answer = client.chat.completions.create(
            model="org/beta", messages=messages, tools=[WEATHER], **forced(f"It is sunny {number}.")
        )
        assert answer.model == "org/beta"
        assert answer.choices[0].message.content == f"It is sunny {number}."
