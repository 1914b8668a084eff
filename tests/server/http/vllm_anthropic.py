"""A script for vLLM's Python: vLLM converts Anthropic requests to chat requests, and answers back."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse

FIELDS = ("messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort")
FIELDS += ("thinking_token_budget", "max_tokens", "stop", "temperature", "top_k", "top_p", "stream", "cache_salt")


def convert(body: dict[str, Any], merges_system: bool) -> dict[str, Any]:
    request = AnthropicMessagesRequest.model_validate(body)
    chat = AnthropicServingMessages.to_chat_completion_request(request, merge_inline_system=merges_system)
    fields = chat.model_dump(mode="json", by_alias=True)
    return {name: fields[name] for name in FIELDS}


def events_of(lines: list[str]) -> list[str]:
    async def chunks() -> AsyncIterator[str]:
        for line in lines:
            yield f"data: {line}\n\n"

    async def collect() -> list[str]:
        serving = MagicMock(spec=AnthropicServingMessages)
        return [event async for event in AnthropicServingMessages.message_stream_converter(serving, chunks())]

    return asyncio.run(collect())


def message_of(body: dict[str, Any]) -> dict[str, Any]:
    response = ChatCompletionResponse.model_validate(body)
    serving = MagicMock(spec=AnthropicServingMessages)
    return AnthropicServingMessages.messages_full_converter(serving, response).model_dump(exclude_none=True)


question = json.loads(Path(sys.argv[1]).read_text())
answer = {
    "requests": [convert(**request) for request in question["requests"]],
    "streams": [events_of(lines) for lines in question["streams"]],
    "messages": [message_of(body) for body in question["messages"]],
}
Path(sys.argv[2]).write_text(json.dumps(answer))
