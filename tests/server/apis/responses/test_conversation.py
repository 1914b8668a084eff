"""Items of `input` become chat messages. The cases of merged items are vLLM's."""

from pathlib import Path

import msgspec
import pytest

from base.errors import RequestError
from server.apis.responses.conversion import build_conversation, continues_message
from server.apis.responses.request import InputItem
from tests.conversations.conversation import read_lines

ITEMS = Path(__file__).with_name("items.jsonl")


def call(call_id):
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"}


def result(call_id):
    return {"type": "function_call_output", "call_id": call_id, "output": "42"}


def read(*items):
    return msgspec.convert(items, list[InputItem])


def build(*items):
    return build_conversation(None, read(*items))


@pytest.mark.parametrize("line", [pytest.param(line, id=line["why"]) for _, line in read_lines(ITEMS)])
def test_items_become_messages(line):
    assert build(*line["input"]) == line["messages"]
    assert continues_message(read(*line["input"])) == line.get("continues", False)


def test_parts_of_messages():
    image = {"type": "input_image", "image_url": "data:image/png;base64,aa", "detail": "low"}
    content = [{"type": "input_text", "text": "a"}, image, {"type": "refusal", "refusal": "no"}]
    (message,) = build({"role": "user", "content": content})
    assert message["content"] == [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aa"}},
        {"type": "text", "text": "no"},
    ]


def test_a_result_needs_its_call():
    assert build(call("1"), result("1"))[-1]["role"] == "tool"
    with pytest.raises(RequestError, match="'2'"):
        build(call("1"), result("2"))
