"""Conversations with `prompt_embeds` parts: embeddings between the texts of a message.

The template renders a marker in place of each part. The texts between markers are tokenized one by one, so a
tokenizer that adds a space to the beginning of a text adds it after each part, too.
"""

from collections.abc import Callable, Sequence
from secrets import token_hex
from typing import Any, NamedTuple

from base.errors import RequestError
from server.renderers.prompts import RenderedPrompt
from server.types import PromptInputs, TensorData

PART_TYPE = "prompt_embeds"
_FEW_PARTS = 1024

_NAN_BYTES = {"float32": b"\x00\x00\xc0\x7f", "float16": b"\x00\x7e", "bfloat16": b"\xc0\x7f"}


class MarkedConversation(NamedTuple):
    """A conversation whose parts with embeddings are replaced by texts."""

    messages: list[dict[str, Any]]
    marker: str
    """Random, so that no text of a client contains it."""
    payloads: list[str]
    """Base64 of each part's tensor."""


def has_few_parts(messages: list[dict[str, Any]]) -> bool:
    """Whether looking at all parts takes less than a millisecond."""
    return sum(len(_parts(message)) for message in messages) <= _FEW_PARTS


def has_embeds(messages: list[dict[str, Any]]) -> bool:
    """Whether a message has a part with embeddings."""
    return any(_is_embeds(part) for message in messages for part in _parts(message))


def mark(messages: list[dict[str, Any]]) -> MarkedConversation:
    """Replaces the parts with embeddings.

    Raises:
        RequestError: a part has no data.
    """
    marker = f"<|{PART_TYPE}:{token_hex(16)}|>"
    payloads: list[str] = []
    marked = []
    for message in messages:
        payloads += [_payload(part) for part in _parts(message) if _is_embeds(part)]
        parts = [{"type": "text", "text": marker} if _is_embeds(part) else part for part in _parts(message)]
        marked.append({**message, "content": parts} if parts else message)
    return MarkedConversation(marked, marker, payloads)


def join(
    texts: Sequence[str],
    tensors: Sequence[TensorData],
    encode: Callable[[int, str], list[int]],
    *,
    max_model_len: int,
) -> RenderedPrompt:
    """The prompt of texts with a tensor between each two; `encode` gets a text's index and the text.

    Raises:
        RequestError: the prompt is longer than the model's context; found before its rows are built.
    """
    dtype, width = tensors[0].dtype, tensors[0].shape[1]
    num_tokens = sum(tensor.shape[0] for tensor in tensors)
    encoded: list[list[int]] = []
    for index, text in enumerate(texts):
        encoded.append(encode(index, text) if text else [])
        num_tokens += len(encoded[-1])
        if num_tokens >= max_model_len:
            raise RequestError(
                f"The prompt has {num_tokens} tokens or more with its prompt_embeds, but the model's maximum context "
                f"length is {max_model_len} tokens (--max-model-len) and one is needed for the output.",
                param="messages",
            )
    missing_row = _NAN_BYTES[dtype] * width
    token_ids: list[int] = []
    rows = bytearray()
    for index, new in enumerate(encoded):
        token_ids += new
        rows += missing_row * len(new)
        if index < len(tensors):
            token_ids += [0] * tensors[index].shape[0]
            rows += tensors[index].data
    embeds = TensorData(dtype, (len(token_ids), width), memoryview(bytes(rows)))
    return RenderedPrompt(token_ids, text=None, inputs=PromptInputs(embeds=embeds))


def _parts(message: dict[str, Any]) -> list[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _is_embeds(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == PART_TYPE


def _payload(part: dict[str, Any]) -> str:
    data = part.get("data")
    if not isinstance(data, str) or not data:
        raise RequestError(f"a content part of type '{PART_TYPE}' needs its tensor in 'data'", param="messages")
    return data
