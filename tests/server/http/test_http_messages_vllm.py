"""/v1/messages makes the same chat requests, messages and events as vLLM's own code."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conversations.conversation import differences, without_ids
from tests.server.apis.anthropic.test_conversion import LINES, body_of, chat_of, without_nulls
from tests.support.peer_vllm import ask_vllm, needs_vllm

pytestmark = [pytest.mark.slow, needs_vllm]

SCRIPT: Final = Path(__file__).with_name("vllm_anthropic.py")
BASH: Final = {"name": "bash", "description": "Runs", "input_schema": {"properties": {"command": {"type": "string"}}}}
SEARCH: Final = {"name": "search", "input_schema": {"type": "object"}, "strict": True, "defer_loading": True}
CALLS: Final = (
    '<think>I look.</think>Let me look.<tool_call>\n{"name": "bash", "arguments": {"command": "ls"}}\n</tool_call>'
    '<tool_call>\n{"name": "search", "arguments": {}}\n</tool_call> Done.'
)
ANSWERS: Final[list[tuple[str, dict[str, Any]]]] = [
    ("Paris.", {}),
    ("", {}),
    ("Paris, the city", {"stop_sequences": ["city"]}),
    ("Paris, the city of light", {"max_tokens": 3}),
    (CALLS, {"tools": [BASH, SEARCH]}),
    (CALLS, {"tools": [BASH, SEARCH], "max_tokens": 30}),
    (CALLS, {"tools": [BASH, SEARCH], "stop_sequences": ["search"]}),
    (CALLS, {}),
]


def test_chat_requests_are_those_of_vllm(tmp_path):
    requests = [
        {"body": body_of(line["message"]), "merges_system": merges}
        for line in LINES
        for merges in (False, True)
        if line.get("vllm", True)
    ]
    theirs = ask_vllm(SCRIPT, {"requests": requests, "streams": [], "messages": []}, tmp_path)["requests"]
    problems = []
    for request, expected in zip(requests, theirs, strict=True):
        ours = chat_of(**request)
        if "tools" not in ours:
            assert ours.pop("tool_choice") == "none"
            expected["tool_choice"] = None
        found = {name: ours.get(name) for name in expected}
        problems += differences(str(request), found, {"": expected | without_nulls(expected)})
    assert problems == []


@pytest.mark.parametrize("tokens_per_step", [1, 5])
def test_messages_and_events_are_those_of_vllm(serve, engine, encode, tmp_path, tokens_per_step):
    """vLLM's code gets the answers of this server's /v1/chat/completions."""
    server = serve(
        enable_auto_tool_choice=True,
        tool_call_parser="hermes",
        reasoning_parser="deepseek_r1",
        enable_prompt_tokens_details=True,
    )
    streams, messages, our_streams, our_messages = [], [], [], []
    for reply, fields in ANSWERS:
        engine.reply, engine.tokens_per_step = encode(reply), tokens_per_step
        body = body_of({"max_tokens": 200} | fields)
        chat = chat_of(body)
        options = {"include_usage": True, "continuous_usage_stats": True}
        streams.append(server.stream_lines("/v1/chat/completions", chat | {"stream_options": options}))
        messages.append(server.post("/v1/chat/completions", chat).json())
        our_streams.append(server.post("/v1/messages", body | {"stream": True}).text)
        our_messages.append(server.post("/v1/messages", body).json())
    theirs = ask_vllm(SCRIPT, {"requests": [], "streams": streams, "messages": messages}, tmp_path)
    for ours, expected in zip(our_streams, theirs["streams"], strict=True):
        assert joined(ours) == joined("".join(expected))
    for message, expected in zip(our_messages, theirs["messages"], strict=True):
        assert without_ids(message) == without_ids(expected)


def joined(text: str) -> list[Any]:
    """The events without ids and usage. Joins adjacent deltas of a kind, because vLLM cuts them elsewhere."""
    events: list[Any] = []
    for event in filter(None, text.split("\n\n")):
        name, data = event.split("\n")
        value = without_ids(json.loads(data.removeprefix("data: ")))
        value.pop("usage", None)
        value.get("message", {}).pop("usage", None)
        last = events[-1][1] if events else {}
        key = next((key for key in ("text", "thinking", "partial_json") if key in value.get("delta", {})), None)
        if key and key in last.get("delta", {}):
            last["delta"][key] += value["delta"][key]
        else:
            events.append((name, value))
    return events
