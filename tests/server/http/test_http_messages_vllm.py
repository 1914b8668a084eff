"""/v1/messages and vLLM's own code: the same chat requests, messages and events."""

import json
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from server.apis.messages.conversion import to_chat_request
from server.apis.messages.request import MessagesRequest
from server.http_body.request_body import RequestDecoder
from tests.server.http.conftest import MODEL
from tests.support.peer_vllm import ask_vllm, needs_vllm

pytestmark = [pytest.mark.slow, needs_vllm]

SCRIPT: Final = Path(__file__).with_name("vllm_anthropic.py")
USER: Final = {"role": "user", "content": "Hello"}
PNG: Final = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
HEADER: Final = {"type": "text", "text": "x-anthropic-billing-header: cch=d1d48;"}
CACHED: Final = {"cache_control": {"type": "ephemeral"}}
BASH: Final = {"name": "bash", "description": "Runs", "input_schema": {"properties": {"command": {"type": "string"}}}}
SEARCH: Final = {"name": "search", "input_schema": {"type": "object"}, "strict": True, "defer_loading": True}


def text(content: str, **others: Any) -> dict[str, Any]:
    return {"type": "text", "text": content} | others


def turn(role: str, *blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": list(blocks)}


def result(content: Any, **others: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "call_1", "content": content} | others


CALL: Final = {"type": "tool_use", "id": "call_1", "name": "bash", "input": {"command": 'echo "ä"'}}
REQUESTS: Final[list[dict[str, Any]]] = [
    {},
    {"system": "Be short."},
    {"system": [HEADER, text("Be short.", **CACHED), text(" Now.")]},
    {"system": [HEADER]},
    {"stream": True, "temperature": 0.5, "top_k": 3, "top_p": 0.5, "stop_sequences": ["x"], "cache_salt": "s"},
    {"messages": [turn("user", text("a"), text("b", **CACHED), {"type": "image", "source": PNG})]},
    {"messages": [turn("user", {"type": "image", "source": {"type": "url", "url": "http://x/a.png"}})]},
    {"messages": [USER, turn("assistant", text("I look."), CALL), turn("user", result("a.py"), text("And now?"))]},
    {"messages": [USER, turn("assistant", CALL, CALL), turn("user", result("a"), result([text("b"), text("c")]))]},
    {"messages": [USER, turn("assistant", CALL), turn("user", result([text("s"), {"type": "image", "source": PNG}]))]},
    {"messages": [USER, turn("assistant", CALL), turn("user", result(None, is_error=True))]},
    {"messages": [USER, turn("assistant", {"type": "thinking", "thinking": "Hm", "signature": "x"}, text("Hi"))]},
    {"messages": [USER, turn("assistant", {"type": "thinking", "thinking": "Hm"}, CALL), turn("user", result("a"))]},
    {"messages": [USER, turn("assistant", {"type": "redacted_thinking", "data": "x"}), USER]},
    {"messages": [USER, {"role": "system", "content": "Plan."}, turn("system", HEADER, text("Go."))], "system": "A."},
    {"tools": [BASH, SEARCH]},
    {"tools": [BASH], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
    {"tools": [BASH], "tool_choice": {"type": "any"}},
    {"tools": [BASH], "tool_choice": {"type": "none"}},
    {"tools": [BASH], "tool_choice": {"type": "tool", "name": "bash"}},
    {"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}},
    {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"thinking": {"type": "adaptive", "display": "omitted"}, "output_config": {"effort": "max"}},
    {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
]

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


def body_of(fields: dict[str, Any]) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 200, "messages": [USER]} | fields


def chat_of(body: dict[str, Any], *, merges_system: bool = False) -> dict[str, Any]:
    """Our chat request without its nulls, nor those of its `response_format`."""
    request = RequestDecoder(MessagesRequest).decode(msgspec.json.encode(body))
    chat = msgspec.to_builtins(to_chat_request(request, merges_system=merges_system))
    if chat["response_format"] is not None:
        chat["response_format"] = without_nulls(chat["response_format"])
    return without_nulls(chat)


def without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def test_chat_requests_are_those_of_vllm(tmp_path):
    requests = [
        {"body": body_of({"max_tokens": 2000} | fields), "merges_system": merges}
        for fields in REQUESTS
        for merges in (False, True)
    ]
    theirs = ask_vllm(SCRIPT, {"requests": requests, "streams": [], "messages": []}, tmp_path)["requests"]
    for request, expected in zip(requests, theirs, strict=True):
        ours = chat_of(**request)
        if "tools" not in ours:
            assert ours.pop("tool_choice") == "none"
            expected["tool_choice"] = None
        assert {name: ours.get(name) for name in expected} == expected, request


@pytest.mark.parametrize("tokens_per_step", [1, 5])
def test_messages_and_events_are_those_of_vllm(serve, engine, encode, tmp_path, tokens_per_step):
    """vLLM's code gets what /v1/chat/completions answers here."""
    server = serve(
        enable_auto_tool_choice=True,
        tool_call_parser="hermes",
        reasoning_parser="deepseek_r1",
        enable_prompt_tokens_details=True,
    )
    streams, messages, our_streams, our_messages = [], [], [], []
    for reply, fields in ANSWERS:
        engine.reply, engine.tokens_per_step = encode(reply), tokens_per_step
        body = body_of(fields)
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
        assert without_ids(without_nulls(message)) == without_ids(expected)


def joined(text: str) -> list[Any]:
    """The events without ids and usage; adjacent deltas of a kind are joined: they are cut elsewhere."""
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


def without_ids(value: Any) -> Any:
    """The value without what differs from request to request."""
    if isinstance(value, dict):
        return {k: without_ids(v) for k, v in value.items() if k not in ("id", "signature", "usage")}
    return [without_ids(member) for member in value] if isinstance(value, list) else value
