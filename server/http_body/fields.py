"""What all requests share: their base, the ranges of fields, marks for fields without support."""

import logging
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from base.errors import RequestError

logger = logging.getLogger(__name__)

INT32_MAX = 2**31 - 1
_EMPTY: tuple[Any, ...] = ([], {})
MAX_BAD_WORDS = 128
MAX_BAD_WORD_CHARS = 1024

Ignored = Annotated[Any, Meta(extra={"support": "ignored"})]
"""A field that vLLM ignores, too, but whose sender expects another answer: a value is logged once.

Fields that are not declared are ignored in silence.
"""

Unsupported = Annotated[Any, Meta(extra={"support": "unsupported"})]
"""A field without which the answer would be wrong: any value except null, empty or the default is a 400."""

TokenId = Annotated[int, Meta(ge=0, le=INT32_MAX)]
TokenCount = TokenId
NumChoices = Annotated[int, Meta(ge=1, le=INT32_MAX)]
"""The operator's limit is checked later (`RequestBody.counted`)."""
NumLogprobs = Annotated[int, Meta(ge=-1, le=INT32_MAX)]
Truncation = Annotated[int, Meta(ge=-1, le=INT32_MAX)]
"""The number of prompt tokens to keep; -1 keeps as many as the model accepts."""
Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(gt=0, le=1)]
TopK = Annotated[int, Meta(ge=-1, le=INT32_MAX)]
MinP = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Meta(gt=0)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Text = Annotated[str, Meta(min_length=1)]
Stop = Text | list[Text]
BadWords = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=MAX_BAD_WORD_CHARS)]], Meta(max_length=MAX_BAD_WORDS)
]
CacheSalt = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^@/\\\x00]*$")]
"""As in vLLM, whose caches use it in paths."""
RequestId = Annotated[str, Meta(max_length=256, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+(?!\n)$")]
"""Without control characters and line breaks: the id is logged and must not imitate another log line."""


class Counted(NamedTuple):
    """A number in a request that the operator limits."""

    limit: str
    """The field of `LimitsConfig`."""
    param: str
    """The request's field."""
    number: int


class RequestBody(msgspec.Struct):
    """Base of all requests."""

    @property
    def num_sequences(self) -> int:
        """How many sequences the engine runs for the request; at least 1."""
        return 1

    def counted(self) -> Iterable[Counted]:
        """What the operator's limits of one request apply to."""
        return ()


def check_unsupported(request: msgspec.Struct) -> None:
    """Raises RequestError for the first unsupported field whose value is not null, empty or its default."""
    for name, default, is_ignored in _marked_fields(type(request)):
        value = getattr(request, name)
        if value is None or value == default or value in _EMPTY:
            continue
        if not is_ignored:
            raise RequestError(f"`{name}` needs `--engine vllm`; leave it out for the embedded engine.", param=name)
        _warn(name)


@cache
def _marked_fields(model: type[msgspec.Struct]) -> tuple[tuple[str, Any, bool], ...]:
    fields = msgspec.structs.fields(model)
    return tuple((f.name, f.default, f.type == Ignored) for f in fields if f.type in (Ignored, Unsupported))


@cache
def _warn(name: str) -> None:
    logger.warning("the request field %r has no effect, as in vLLM; this is logged once", name)


Messages = Annotated[list[dict[str, Any]], Meta(min_length=1)]
"""Unchecked messages: the renderer checks roles and content parts."""


def check_generation_prompt(add_generation_prompt: bool | None, continue_final_message: bool) -> None:
    """Raises RequestError if the last message would have to be both continued and closed."""
    if continue_final_message and add_generation_prompt:
        raise RequestError(
            "Cannot set both `continue_final_message` and `add_generation_prompt` to true.",
            param="add_generation_prompt",
        )


def opens_message(add_generation_prompt: bool | None, continue_final_message: bool) -> bool:
    """Whether the template opens a new message; by default only if no message is continued."""
    return not continue_final_message if add_generation_prompt is None else add_generation_prompt
