"""The field and the check that all requests with messages share."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from msgspec import Meta

from server.errors import RequestError
from server.http_body.fields import Counted

Messages = Annotated[list[dict[str, Any]], Meta(min_length=1)]
"""Unchecked messages: the renderer checks roles and content parts."""


def check_generation_prompt(add_generation_prompt: bool | None, continue_final_message: bool) -> None:
    """Raises RequestError if the last message would have to be both continued and closed."""
    if continue_final_message and add_generation_prompt:
        raise RequestError(
            "Cannot set both `continue_final_message` and `add_generation_prompt` to true.",
            param="add_generation_prompt",
        )


def count_conversations(param: str, conversations: Sequence[Sequence[Any]]) -> Iterator[Counted]:
    """The conversations of a request, and the messages of each."""
    yield Counted("max_prompts", param, len(conversations))
    for messages in conversations:
        yield Counted("max_messages", param, len(messages))


def opens_message(add_generation_prompt: bool | None, continue_final_message: bool) -> bool:
    """Whether the template opens a new message; by default only if no message is continued."""
    return not continue_final_message if add_generation_prompt is None else add_generation_prompt
