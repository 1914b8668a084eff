"""Loads `prompt_embeds`, embeddings that an untrusted client computed: a tensor file in base64.

Every expensive step follows the check that bounds it, and runs without the GIL or in small pieces: it runs in
the renderer's pool, and the event loop must not wait for the GIL. Needs numpy only.
"""

import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, NamedTuple

import pybase64

from base.errors import RequestError
from server.renderers.chat_template import EMBEDS_TYPE, is_embeds, parts_of
from server.renderers.embeds.stored_tensor import (
    NotFiniteError,
    StoredTensor,
    TensorFileError,
    convert_rows,
)
from server.renderers.embeds.tensor_file import is_torch_file, read_torch_file
from server.renderers.prompts import RenderedPrompt
from server.types import PromptInputs, TensorData

PARAM = "prompt_embeds"

_BYTES_PER_NUMBER = 4
_FILE_BYTES = 1 << 16
"""More than a file needs besides the numbers."""
_MAX_FILE_BYTES = 768 << 20
_BASE64_CHARS = 4
_BASE64_BYTES = 3

_NAN_BYTES = {"float32": b"\x00\x00\xc0\x7f", "float16": b"\x00\x7e", "bfloat16": b"\xc0\x7f"}


@dataclass(frozen=True)
class EmbedsLimits:
    """The shape and type of prompt embeds that the model accepts."""

    max_model_len: int
    """Most tokens of a prompt and its output."""
    width: int
    """Numbers in a row."""
    dtype: str
    """torch's name of the model's dtype."""

    @property
    def max_file_bytes(self) -> int:
        """Size of the longest prompt as float32, limited to `_MAX_FILE_BYTES` per request."""
        return min(self.max_model_len * self.width * _BYTES_PER_NUMBER + _FILE_BYTES, _MAX_FILE_BYTES)

    @property
    def max_base64_chars(self) -> int:
        """`max_file_bytes` in base64 characters."""
        return -(-self.max_file_bytes // _BASE64_BYTES) * _BASE64_CHARS


def safe_load_prompt_embeds(embeds: str | bytes, limits: EmbedsLimits, *, truncate_to: int | None = None) -> TensorData:
    """The rows in the model's dtype; if there are more than `truncate_to`, the last ones.

    Args:
        embeds: base64 of a `torch.save` file.
        limits: the shape and type that the model accepts.
        truncate_to: most rows to keep.

    Raises:
        RequestError: `embeds` is not a matrix of finite numbers that fits the model.
    """
    try:
        tensor = _read(_decode(embeds, limits))
        dense = _select_rows(tensor, limits, truncate_to)
        rows = convert_rows(dense, limits.dtype)
    except TensorFileError as err:
        raise _reject(str(err)) from err
    except NotFiniteError as err:
        why = f"a number too large for {limits.dtype}" if err.is_too_large else "NaN or infinity"
        raise _reject(f"holds {why} in row {err.row}: all numbers must be finite") from err
    return TensorData(limits.dtype, rows.shape, rows.reshape(-1).view("u1").data)


def _decode(embeds: str | bytes, limits: EmbedsLimits) -> bytes:
    if len(embeds) > limits.max_base64_chars:
        raise _reject(
            f"is {len(embeds)} characters of base64, but the model accepts at most {limits.max_model_len} rows of "
            f"{limits.width} numbers, which are at most {limits.max_base64_chars} characters: send fewer rows, as "
            "float16 or bfloat16; save a slice of a tensor with `tensor.clone()`, or the whole tensor is saved"
        )
    try:
        payload = pybase64.b64decode(embeds, validate=True)
    except (binascii.Error, ValueError) as err:
        raise _reject(f"is not valid base64 ({err}): send no line breaks and no URL-safe alphabet") from err
    if not payload:
        raise _reject("is empty")
    return payload


def _read(payload: bytes) -> StoredTensor:
    if is_torch_file(payload):
        return read_torch_file(payload)
    raise TensorFileError("is no file of torch.save: send base64 of what `torch.save(tensor, file)` writes")


def _select_rows(tensor: StoredTensor, limits: EmbedsLimits, truncate_to: int | None) -> StoredTensor:
    """The rows to use."""
    shape = tensor.shape
    matrix = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    if len(matrix) != 2:
        raise _reject(f"must be a 2D tensor of shape (num_tokens, hidden_size), got shape {list(shape)}")
    if matrix[1] != limits.width:
        raise _reject(f"has rows of {matrix[1]} numbers, but the model's hidden size is {limits.width}")
    num_kept = matrix[0] if truncate_to is None else min(matrix[0], truncate_to)
    if num_kept < 1:
        raise _reject("has no rows")
    if num_kept >= limits.max_model_len:
        raise _reject(
            f"has {matrix[0]} rows, but the model's maximum context length is {limits.max_model_len} tokens "
            "(--max-model-len) and one is needed for the output"
        )
    rows = tensor.array.reshape(matrix)
    return StoredTensor(tensor.dtype, rows[matrix[0] - num_kept :])


def _reject(what: str) -> RequestError:
    return RequestError(f"`{PARAM}` {what}.", param=PARAM)


class MarkedConversation(NamedTuple):
    """A conversation whose parts with embeddings are replaced by texts."""

    messages: list[dict[str, Any]]
    marker: str
    """Random, so that no text of a client contains it."""
    payloads: list[str]
    """Base64 of each part's tensor."""


def mark(messages: list[dict[str, Any]]) -> MarkedConversation:
    """Replaces the parts with embeddings.

    Raises:
        RequestError: a part has no data.
    """
    marker = f"<|{EMBEDS_TYPE}:{token_hex(16)}|>"
    payloads: list[str] = []
    marked = []
    for message in messages:
        payloads += [_payload(part) for part in parts_of(message) if is_embeds(part)]
        parts = [{"type": "text", "text": marker} if is_embeds(part) else part for part in parts_of(message)]
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


def _payload(part: dict[str, Any]) -> str:
    data = part.get("data")
    if not isinstance(data, str) or not data:
        raise RequestError(f"a content part of type '{EMBEDS_TYPE}' needs its tensor in 'data'", param="messages")
    return data
