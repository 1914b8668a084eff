"""Parts of the responses of several APIs, and the encoding of server-sent events."""

from typing import Any, Final, NamedTuple

import msgspec

EVENTS_TYPE: Final = b"text/event-stream; charset=utf-8"
"""The media type of a stream of events."""
LAST_EVENT: Final = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()


class PromptTokensDetails(msgspec.Struct):
    """How many of the prompt's tokens came from the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct):
    """How many of the generated tokens are reasoning."""

    reasoning_tokens: int


class Usage(msgspec.Struct, kw_only=True):
    """`usage` of completions and chat completions."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None

    @classmethod
    def of(cls, num_prompt_tokens: int, num_tokens: int = 0) -> "Usage":
        """The usage of so many tokens of the prompt and generated ones."""
        total = num_prompt_tokens + num_tokens
        return cls(prompt_tokens=num_prompt_tokens, total_tokens=total, completion_tokens=num_tokens)


class BinaryResponse(NamedTuple):
    """A body of bytes, and its type."""

    body: bytes
    content_type: bytes


def encode_named_event(payload: dict[str, Any]) -> bytes:
    """One event with its type as its name."""
    name: str = payload["type"]
    return b"event: " + name.encode() + b"\n" + encode_event(payload)


def encode_event(payload: Any) -> bytes:
    """One event with a body as JSON."""
    return b"data: " + _encoder.encode(payload) + b"\n\n"
