"""Events, conversations and tools equal those that vLLM's own code makes of the same parts and items."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.apis.responses.conversion import build_conversation, continues_message
from server.apis.responses.output import OutputWriter
from server.apis.responses.request import InputItem, ResponsesRequest
from server.apis.responses.serving import empty_response
from server.apis.responses.tools import ResponseTools
from server.generation.chat import ToolCallPart
from server.terms.types import SamplingParams
from server.text.parsers.base import Content, Reasoning
from tests.conversations.conversation import read_lines
from tests.support.peer_vllm import ask_vllm, needs_vllm

pytestmark = [pytest.mark.slow, needs_vllm]

SCRIPT = Path(__file__).with_name("vllm_responses.py")
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True},
    {"type": "namespace", "name": "n", "description": "d", "tools": [{"type": "function", "name": "g"}]},
    {"type": "web_search"},
]


def call(index: int, name: str | None, arguments: str = "") -> dict[str, Any]:
    return {"index": index, "id": None if name is None else f"call-{index}", "name": name, "arguments": arguments}


OUTPUTS: list[list[dict[str, Any]]] = [
    [{"content": "a"}, {"content": " b"}, {"content": ""}],
    [{"reasoning": "a"}, {"reasoning": "b", "content": "c"}, {"content": "d"}],
    [{"content": "a", "calls": [call(0, "f", "{")]}, {"calls": [call(0, None, "}")]}],
    [{"calls": [call(0, "f"), call(1, "n__g", "{}")]}, {"content": "and"}, {"calls": [call(2, "f", "{}")]}],
    [{"reasoning": "a"}, {"calls": [call(0, "f", '{"a": "ls')]}, {"calls": [call(0, None, ' \\"x\\""}')]}],
    [{"calls": [call(0, "f", "pwd")]}, {"calls": [call(1, "other", "1")]}],
]
INPUTS: list[Any] = ["Hi", *(line["input"] for _, line in read_lines(Path(__file__).with_name("items.jsonl")))]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    question = {"tools": TOOLS, "outputs": OUTPUTS, "inputs": INPUTS}
    return ask_vllm(SCRIPT, question, tmp_path_factory.mktemp("vllm"))


def parts_of(delta: dict[str, Any]) -> list[Any]:
    parts: list[Any] = [
        kind(delta[name]) for name, kind in (("reasoning", Reasoning), ("content", Content)) if name in delta
    ]
    return [
        *parts,
        *(ToolCallPart(*(one[key] for key in ("index", "id", "name", "arguments"))) for one in delta.get("calls", ())),
    ]


def events_of(deltas: list[dict[str, Any]]) -> list[Any]:
    writer = OutputWriter(ResponseTools(ResponsesRequest(input="a", tools=TOOLS)))
    events = [event for delta in deltas for event in writer.add(parts_of(delta), [])]
    return [*events, *writer.finish()]


def without_nulls(value: Any, ids: dict[str, str]) -> Any:
    """Removes nulls, because fields that are null in vLLM may be missing here. Numbers ids by appearance."""
    if isinstance(value, list):
        return [without_nulls(member, ids) for member in value]
    if not isinstance(value, dict):
        return value
    found = {name: without_nulls(member, ids) for name, member in value.items() if member is not None}
    for name in {"id", "item_id"} & found.keys():
        prefix = found[name].partition("_")[0]
        found[name] = ids.setdefault(found[name], f"{prefix}_{len(ids)}")
    return found


@pytest.mark.parametrize("number", range(len(OUTPUTS)))
def test_events_are_the_same(theirs, number):
    assert without_nulls(events_of(OUTPUTS[number]), {}) == without_nulls(theirs["events"][number], {})


@pytest.mark.parametrize("number", range(len(INPUTS)))
def test_messages_are_the_same(theirs, number):
    given = INPUTS[number]
    items = (
        [InputItem(role="user", content=given)] if isinstance(given, str) else msgspec.convert(given, list[InputItem])
    )
    messages = build_conversation("Be brief.", items)
    assert [_with_text(message) for message in messages] == theirs["messages"][number]
    assert continues_message(items) == theirs["continues"][number]


def _with_text(message: dict[str, Any]) -> dict[str, Any]:
    """Replaces a message's parts by the text of the first part, as vLLM does for an assistant's message."""
    content = message.get("content")
    return message | {"content": content[0]["text"]} if isinstance(content, list) else message


def test_functions_are_the_same(theirs):
    ours = [msgspec.to_builtins(tool) for tool in ResponseTools(ResponsesRequest(input="a", tools=TOOLS)).functions]
    for tool in (*ours, *theirs["tools"]):
        tool["function"].get("parameters", {}) and tool["function"]["parameters"].pop("properties", None)
    assert [without_nulls(tool, {}) for tool in ours] == [without_nulls(tool, {}) for tool in theirs["tools"]]


def test_responses_have_all_fields(theirs):
    ours = set(empty_response(ResponsesRequest(input="a"), SamplingParams(max_tokens=1), "m"))
    assert set(theirs["fields"]) - ours == {"metrics"}  # with --enable-per-request-metrics only
    assert ours <= set(theirs["fields"])
