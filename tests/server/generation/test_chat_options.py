"""What a chat request says about its prompt: the template's variables and tools."""

from typing import Any

import pytest

from server.generation.chat import chat_options
from server.generation.request import ChatRequest, FunctionDefinition, Tool
from server.renderers.prompts import ChatOptions
from server.server_config import GenerationConfig

MESSAGES = [{"role": "user", "content": "Hello"}]
SHOWN = {"type": "function", "function": {"name": "f", "description": None, "parameters": None}}


def options_of(*, excludes_tools: bool = False, **fields: Any) -> ChatOptions:
    config = GenerationConfig(exclude_tools_when_tool_choice_none=excludes_tools)
    return chat_options(ChatRequest(messages=MESSAGES, **fields), config)


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({"chat_template_kwargs": {"a": 1}}, {"a": 1}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}),
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high", "enable_thinking": True}),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False, "reasoning_effort": "x"}},
            {"reasoning_effort": "low", "enable_thinking": False},
        ),
    ],
    ids=["given", "none", "high", "both"],
)
def test_the_reasoning_effort_is_a_variable_of_the_template(fields, variables):
    assert options_of(**fields).chat_template_kwargs == variables


@pytest.mark.parametrize(("choice", "excludes_tools", "shown"), [("none", False, True), ("none", True, False)])
def test_tools_are_shown_as_vllm_writes_them(choice, excludes_tools, shown):
    tools = [Tool(function=FunctionDefinition(name="f"))]
    found = options_of(tools=tools, tool_choice=choice, excludes_tools=excludes_tools).tools
    assert found == ([SHOWN] if shown else None)


@pytest.mark.parametrize(
    ("fields", "opens"),
    [({}, True), ({"continue_final_message": True}, False), ({"add_generation_prompt": False}, False)],
)
def test_a_message_is_opened_unless_one_is_continued(fields, opens):
    assert options_of(**fields).add_generation_prompt is opens
