"""The `openai` client gets reasoning and then tool calls. A grammar makes the model write both."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.e2e.server_process import ServerProcess

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: <think>"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
BUDGET = 12
REASONED: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Where?"}],
    "temperature": 1,
    "max_tokens": 200,
    "extra_body": {"thinking_token_budget": BUDGET},
}


@pytest.fixture(scope="module")
def client(tiny_llama: Path) -> Iterator[OpenAI]:
    with connect(tiny_llama, "--reasoning-parser", "deepseek_r1") as openai:
        yield openai


@contextmanager
def connect(model: Path, *words: str) -> Iterator[OpenAI]:
    """The client of a server with these arguments."""
    arguments = [str(model), "--served-model-name", "tiny", "--chat-template", TEMPLATE, *words]
    with ServerProcess(arguments) as running, running.openai() as openai:
        yield openai


def test_a_budget_ends_the_reasoning_and_the_answer_follows_its_schema(client):
    schema: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    answer = client.chat.completions.create(**REASONED, n=4, seed=3, response_format=schema)
    messages = [choice.message for choice in answer.choices]
    assert len({getattr(message, "reasoning", "") for message in messages}) == 4
    for message in messages:
        assert json.loads(message.content or "")["city"] in ("Rome", "Oslo")
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 4 * BUDGET


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}], ids=["any", "named"])
def test_a_forced_tool_call_is_streamed_after_the_reasoning(client, choice):
    fields: Any = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False, "stream": True}
    stream = client.chat.completions.create(**REASONED, **fields, seed=5)
    kinds, arguments = [], ""
    for delta in (chunk.choices[0].delta for chunk in stream if chunk.choices):
        kinds += ["reasoning"] if getattr(delta, "reasoning", None) else []
        for call in delta.tool_calls or []:
            kinds.append("call")
            arguments += (call.function and call.function.arguments) or ""
    assert kinds == sorted(kinds, reverse=True)
    assert {*kinds} == {"reasoning", "call"}
    assert json.loads(arguments)["city"] in ("Rome", "Oslo")


def test_a_strict_call_may_end_the_reasoning(tiny_llama):
    """The budget forces the model to begin a call. From there on, the grammar has the call's tag."""
    parsers = ["--reasoning-parser", "qwen3", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    strict = {"type": "function", "function": {"name": "f", "strict": True, "parameters": SCHEMA}}
    fields: Any = {"tools": [strict], "stop": ["</tool_call>"], "include_stop_str_in_output": True}
    with connect(tiny_llama, *parsers, "--reasoning-config", '{"reasoning_end_str": "<tool_call>"}') as client:
        body = REASONED | {"extra_body": REASONED["extra_body"] | fields}
        choice = client.chat.completions.create(**body, seed=1).choices[0]
    (call,) = choice.message.tool_calls or []
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    assert len(getattr(choice.message, "reasoning", "")) > 0
