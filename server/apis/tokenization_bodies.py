"""Bodies of /tokenize and /detokenize."""

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from server.errors import RequestError
from server.generation.tools import Tool
from server.http_body.conversation import Messages, check_generation_prompt
from server.http_body.fields import Counted, RequestBody, TokenId, Unsupported, check_unsupported

MAX_TOKENS = 1 << 20
"""Limit of /detokenize, larger than any model's context."""


class TokenizeRequest(RequestBody, kw_only=True, forbid_unknown_fields=True):
    """A text or a conversation; the fields below `messages` apply to conversations only."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = False
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Tool] | None = None
    media_io_kwargs: Unsupported = None
    mm_processor_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_unsupported(self)
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("Give either `prompt` or `messages`.", param="prompt")
        check_generation_prompt(self.add_generation_prompt, self.continue_final_message)

    def counted(self) -> Iterator[Counted]:
        yield Counted("max_messages", "messages", len(self.messages or ()))
        yield Counted("max_tools", "tools", len(self.tools or ()))


class TokenizeResponse(msgspec.Struct, kw_only=True):
    """Token ids of the rendered prompt."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(RequestBody, kw_only=True, forbid_unknown_fields=True):
    """Token ids to turn back into text."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS)]


class DetokenizeResponse(msgspec.Struct):
    """The text."""

    prompt: str
