"""Fields of completion and chat requests: ranges, rejected fields, and fields that reach the template.

A line of rejected.jsonl has the fields of a chat, of a completion or of both, with the parameter and the
words of the error.
"""

from typing import Any

import pytest

from base.errors import RequestError
from server.engine.sampling.grammar import GrammarError
from server.generation.chat import chat_options
from server.generation.guided import find_constraint
from server.generation.request import ChatRequest, FunctionDefinition, Tool
from server.terms.http_body.request_body import _warn
from server.terms.server_config import GenerationConfig
from tests.conversations.conversation import differences
from tests.server.engine.sampling.grammar_texts import build_grammar
from tests.server.generation.conftest import Model, decode, read_cases
from tests.server.generation.test_sampling import sample

BAD_VALUES: dict[str, list[Any]] = {
    "temperature": [-0.1, 2.1, "hot"],
    "top_p": [0, 1.1],
    "min_p": [-0.1, 1.1],
    "presence_penalty": [-2.1, 2.1],
    "frequency_penalty": [-2.1, 2.1],
    "max_tokens": [-1],
    "min_tokens": [-1],
    "seed": [2**63, -(2**63) - 1, 1.5],
    "stop": ["", ["a", ""], 3, True],
    "stop_token_ids": [[-1]],
    "logit_bias": [{"a": 1}],
    "bad_words": [["a"]],
    "logprobs": [-2],
    "prompt_logprobs": [-2],
    "truncate_prompt_tokens": [-2],
    "stream": ["yes"],
    "stream_options": [{"include_usage": True}],
    "request_id": ["", "a\nERROR forged", "a\rb", "a\x1b[31m", "a\u2028b", "a\n"],
    "response_format": ["json", {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"name": "a"}}],
    "media_io_kwargs": [{"a": {}}],
    "truncation_side": ["right"],
    "logprob_token_ids": [[1]],
    "use_beam_search": [True],
    "stream_interval": [2],
    "kv_transfer_params": [{"prompt_token_ids": [1]}],
    "thinking_token_budget": [-2, 1.0, True, "10"],
    "cache_salt": ["", "a" * 129, "a/b", "a@b", "a\\b", "a\x00"],
}
"""Field -> values that are rejected. A request id is logged, so it must not forge lines of the log."""

IGNORED_IN_CHAT = [
    ("audio", {"voice": "alloy"}),
    ("functions", [{"name": "f"}]),
    ("function_call", "auto"),
    ("web_search_options", {"a": 1}),
]


@pytest.mark.parametrize("name", BAD_VALUES)
def test_bad_value_is_rejected_with_the_name_of_its_field(model, name):
    for value in BAD_VALUES[name]:
        with pytest.raises(RequestError) as caught:
            decode(model, **{name: value})
        assert (caught.value.status, caught.value.param) == (400, name)
        assert caught.value.message


@pytest.mark.parametrize(("name", "value"), IGNORED_IN_CHAT)
def test_field_that_vllm_ignores_too_is_logged_once(name, value, caplog):
    _warn.cache_clear()
    for _ in range(2):
        decode(ChatRequest, **{name: value})
    assert [record.args for record in caplog.records] == [(name,)]


@pytest.mark.parametrize("kind", ["json", "regex", "choice", "grammar", "whitespace_pattern"])
def test_a_field_of_former_versions_is_rejected_with_the_one_that_replaces_it(model, kind):
    with pytest.raises(RequestError, match=f"vLLM has replaced `guided_{kind}` by `structured_outputs.{kind}`") as err:
        decode(model, **{f"guided_{kind}": "a"})
    assert (err.value.status, err.value.param) == (400, f"guided_{kind}")


def test_cache_salts_may_be_as_long_as_in_vllm(model):
    decode(model, cache_salt="a" * 128)


SHOWN = {"type": "function", "function": {"name": "f", "description": None, "parameters": None}}
TOOLS = {"tools": [Tool(function=FunctionDefinition(name="f"))], "tool_choice": "none"}
BOTH = {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False, "reasoning_effort": "x"}}


def variables(**values: Any) -> dict[str, Any]:
    return {"chat_template_kwargs": values}


@pytest.mark.parametrize(
    ("fields", "excludes_tools", "options"),
    [
        ({"chat_template_kwargs": {"a": 1}}, False, variables(a=1)),
        ({"reasoning_effort": "none"}, False, variables(reasoning_effort="none", enable_thinking=False)),
        ({"reasoning_effort": "high"}, False, variables(reasoning_effort="high", enable_thinking=True)),
        (BOTH, False, variables(reasoning_effort="low", enable_thinking=False)),
        (TOOLS, False, {"tools": [SHOWN]}),
        (TOOLS, True, {"tools": None}),
        ({}, False, {"add_generation_prompt": True}),
        ({"continue_final_message": True}, False, {"add_generation_prompt": False}),
        ({"add_generation_prompt": False}, False, {"add_generation_prompt": False}),
    ],
)
def test_the_template_gets_the_same_options_as_in_vllm(fields, excludes_tools, options):
    config = GenerationConfig(exclude_tools_when_tool_choice_none=excludes_tools)
    found = chat_options(ChatRequest(messages=[{"role": "user", "content": "Hello"}], **fields), config)
    assert {name: getattr(found, name) for name in options} == options


@pytest.mark.parametrize(("line", "model", "fields"), read_cases("rejected.jsonl"))
def test_a_request_is_rejected(line: dict[str, Any], model: Model, fields: dict[str, Any]):
    kind = RequestError if "param" in line else GrammarError
    with pytest.raises(kind) as caught:
        if (constraint := find_constraint(decode(model, **fields))) is not None:
            build_grammar(constraint.guided)
        sample(model, num_prompt_tokens=line.get("num_prompt_tokens", 5), **fields)
    if isinstance(caught.value, RequestError):
        assert (caught.value.status, caught.value.param) == (400, line["param"])
        assert caught.value.message
    assert differences("message", str(caught.value), {"": line.get("message", "...")}) == []
