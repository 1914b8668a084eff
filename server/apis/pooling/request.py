"""What the bodies of all pooling endpoints share, with vLLM's names and defaults."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from msgspec import Meta

from base.errors import RequestError
from server.http_body.request_body import (
    Counted,
    RequestBody,
    RequestId,
    Truncation,
    Unsupported,
    check_generation_prompt,
    check_unsupported,
)

EncodingFormat = Literal["float", "base64", "bytes", "bytes_only"]
Message = dict[str, Any]
Conversation = list[Message]
Dimensions = Annotated[int, Meta(ge=1)]
AnyTokenId = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""Compared with the model's vocabulary later."""


class PoolingFields(RequestBody, kw_only=True):
    """Base of every request whose prompts are pooled."""

    model: str | None = None
    truncate_prompt_tokens: Truncation | None = None
    truncation_side: Literal["left", "right"] | None = None
    """The side on which tokens are cut off; `right`, the default here, keeps the first ones."""
    padding: Unsupported = "do_not_pad"
    request_id: RequestId | None = None
    mm_processor_kwargs: Unsupported = None
    normalize: Any = None

    def __post_init__(self) -> None:
        check_unsupported(self)
        if self.normalize is not None:
            raise RequestError("Parameter `normalize` was removed; use `use_activation` instead.", param="normalize")


class InputFields(PoolingFields, kw_only=True):
    """Base of requests with texts, token ids or conversations.

    The fields below `messages` apply to these only.
    """

    input: str | list[AnyTokenId | str | list[AnyTokenId | Message] | Message] | None = None
    messages: Annotated[list[Message | Annotated[Conversation, Meta(min_length=1)]], Meta(min_length=1)] | None = None
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    add_special_tokens: bool | None = None
    """None adds them to texts, but not to conversations, whose templates write them."""
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    media_io_kwargs: Unsupported = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.input is None) == (self.messages is None):
            raise RequestError("Give either `input` or `messages`.", param="input")
        if self.input == []:
            raise RequestError("You must pass at least one prompt: `input` is empty.", param="input")
        for name in ("input", "messages"):
            _check_alike(getattr(self, name), name)
        check_generation_prompt(self.add_generation_prompt, self.continue_final_message)

    @property
    def num_sequences(self) -> int:
        return len(self.prompts) or len(self.conversations) or 1

    def counted(self) -> Iterator[Counted]:
        name = "input" if self.messages is None else "messages"
        yield Counted("max_prompts", name, self.num_sequences)

    @property
    def prompts(self) -> list[str | list[int]]:
        """Texts and lists of token ids; empty if the inputs are conversations."""
        if self.input is None or self.conversations:
            return []
        if isinstance(self.input, str) or isinstance(self.input[0], int):
            return [self.input]  # type: ignore[list-item]
        return self.input  # type: ignore[return-value]

    @property
    def conversations(self) -> list[Conversation]:
        """The conversations in `messages` or `input`; empty if the inputs are texts or token ids."""
        given = self.input if self.messages is None else self.messages
        if not isinstance(given, list) or not given:
            return []
        if isinstance(given[0], dict):
            return [given]  # type: ignore[list-item]
        if isinstance(given[0], list) and given[0] and isinstance(given[0][0], dict):
            return given  # type: ignore[return-value]
        return []


class VectorFields(InputFields, kw_only=True):
    """Base of requests for vectors, with the vectors' encoding."""

    encoding_format: EncodingFormat = "float"
    """`base64` has the bytes of float32; vLLM has `bytes` and `bytes_only`, too."""
    embed_dtype: Unsupported = "float32"
    endianness: Unsupported = "native"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoding_format not in ("float", "base64"):
            raise RequestError(
                f"`encoding_format` {self.encoding_format} needs `--engine vllm`; the embedded engine has float and "
                "base64.",
                param="encoding_format",
            )


def _check_alike(given: Any, name: str) -> None:
    """Raises RequestError if texts, token ids and messages are mixed."""
    if not isinstance(given, list):
        return
    inner = {type(part) for member in given if isinstance(member, list) for part in member}
    has_gap = any(member == [] for member in given)
    if len({type(member) for member in given}) > 1 or len(inner) > 1 or (has_gap and dict in inner):
        raise RequestError(
            f"`{name}` must hold texts, or token ids, or lists of token ids, or conversations, not a mix.", param=name
        )
