"""A grammar that cannot be compiled gets 400 at each API, and the same engine serves the next request."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.server_process import ServerProcess
from tests.server.engine.sampling.hostile_grammars import CHAINS, NUMBERS

_CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
_WITHOUT_TOOLS = "{{ messages[0].content }}"  # a prompt with the tools would be too long
_FUNCTION = {"name": "f", "description": "Does something"}

SCHEMAS = {
    "chain": CHAINS["schema: properties"](1 << 20),
    "number": NUMBERS["integer: multipleOf"](99_999_989),
}
TEXTS = {
    "rules": CHAINS["lark: rules"](1 << 20),
    "terminals": CHAINS["lark: terminals"](1 << 20),
}


def _tool(schema: Any, **choice: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    if "$defs" in schema:
        parameters |= {"$defs": schema.pop("$defs")}
    return _CHAT | {"tools": [{"type": "function", "function": _FUNCTION | {"parameters": parameters}}]} | choice


def _message(schema: Any, choice: dict[str, Any]) -> dict[str, Any]:
    body = _tool(schema)
    parameters = body.pop("tools")[0]["function"]["parameters"]
    return body | {"tools": [{"name": "f", "input_schema": parameters}], "tool_choice": choice}


_NAMED = {"type": "function", "function": {"name": "f"}}
REQUESTS: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "completion": ("completions", lambda schema: {"prompt": "Hi", "structured_outputs": {"json": schema}}),
    "chat: json": ("chat/completions", lambda schema: _CHAT | {"structured_outputs": {"json": schema}}),
    "chat: format": (
        "chat/completions",
        lambda schema: (
            _CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}
        ),
    ),
    "chat: required": ("chat/completions", lambda schema: _tool(schema, tool_choice="required")),
    "chat: named": ("chat/completions", lambda schema: _tool(schema, tool_choice=_NAMED)),
    "response": (
        "responses",
        lambda schema: {"input": "Hi", "text": {"format": {"type": "json_schema", "name": "a", "schema": schema}}},
    ),
    "response: tools": (
        "responses",
        lambda schema: {
            "input": "Hi",
            "tools": [
                {"type": "function", "name": "f", "parameters": _tool(schema)["tools"][0]["function"]["parameters"]}
            ],
            "tool_choice": "required",
        },
    ),
    "message: any": ("messages", lambda schema: _message(schema, {"type": "any"})),
    "message: tool": ("messages", lambda schema: _message(schema, {"type": "tool", "name": "f"})),
    "message: format": (
        "messages",
        lambda schema: _CHAT | {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
    ),
}


@pytest.fixture(scope="module")
def server(start_tiny_server) -> Iterator[ServerProcess]:
    with start_tiny_server("--chat-template", _WITHOUT_TOOLS) as server:
        server.wait_ready()
        words = {"choice": ["a", "b" * 100_000]}  # needs a trial, whose helper process is then no leak of a test
        server.ask("/v1/completions", {"model": "smol", "prompt": "a", "structured_outputs": words, "max_tokens": 1})
        yield server


def assert_refused(server: ServerProcess, path: str, body: dict[str, Any]) -> None:
    answer = server.ask(f"/v1/{path}", {"model": "smol"} | body)
    assert answer.status == 400, answer
    assert "the grammar is too complex" in answer.json["error"]["message"]
    small = {"model": "smol", "prompt": "a", "structured_outputs": {"choice": ["yes", "no"]}}
    after = server.ask("/v1/completions", small)
    assert after.json["choices"][0]["text"] in ("yes", "no")
    assert "the grammar is" not in server.log


@pytest.mark.parametrize("api", REQUESTS)
@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_schema_that_cannot_be_compiled_is_refused(server, api, schema):
    path, create = REQUESTS[api]
    assert_refused(server, path, create(json.loads(SCHEMAS[schema].spec)))


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_cannot_be_compiled_is_refused(server, path, name):
    text = TEXTS[name]
    body = {"prompt": "Hi"} if path == "completions" else _CHAT
    assert_refused(server, path, body | {"structured_outputs": {text.kind: text.spec}})
