"""Loads `prompt_embeds`, a tensor file in base64 with embeddings that an untrusted client has computed.

A check before each expensive step limits the step's cost. The event loop must not wait for the GIL, so these
steps run in the renderer's pool, and either release the GIL or work in small pieces. The module needs only
numpy.
"""

import binascii
from dataclasses import dataclass

import pybase64

from base.errors import PromptTooLongError, RequestError
from server.terms.types import TensorData
from server.text.renderers.stored_tensor import NotFiniteError, StoredTensor, TensorFileError, convert_rows
from server.text.renderers.tensor_file import read_torch_file

PARAM = "prompt_embeds"

_BYTES_PER_NUMBER = 4
_FILE_BYTES = 1 << 16
"""How many bytes a file may have besides its numbers. This is more than torch.save writes."""
_MAX_FILE_BYTES = 768 << 20


@dataclass(frozen=True)
class EmbedsLimits:
    """The shape and type that prompt embeddings must have."""

    max_model_len: int
    """The most tokens of a prompt and its output together."""
    width: int
    """The number of columns of the matrix."""
    dtype: str
    """The type of the model's numbers, by torch's name."""

    @property
    def max_base64_chars(self) -> int:
        """The base64 of the largest file: the longest prompt in float32, but at most `_MAX_FILE_BYTES`."""
        max_file_bytes = min(self.max_model_len * self.width * _BYTES_PER_NUMBER + _FILE_BYTES, _MAX_FILE_BYTES)
        return -(-max_file_bytes // 3) * 4


def safe_load_prompt_embeds(embeds: str | bytes, limits: EmbedsLimits, *, truncate_to: int | None = None) -> TensorData:
    """Returns the rows of the embeddings in the model's type, at most the last `truncate_to` rows.

    `embeds` is the base64 of a `torch.save` file.

    Raises:
        RequestError: `embeds` is not a matrix of finite numbers that fits the model.
    """
    try:
        tensor = read_torch_file(_decode(embeds, limits))
        rows = convert_rows(_select_rows(tensor, limits, truncate_to), limits.dtype)
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
            f"{limits.width} numbers, which are at most {limits.max_base64_chars} characters. Send fewer rows, as "
            "float16 or bfloat16. Save a slice of a tensor with `tensor.clone()`, or the whole tensor is saved"
        )
    try:
        payload = pybase64.b64decode(embeds, validate=True)
    except (binascii.Error, ValueError) as err:
        raise _reject(f"is not valid base64 ({err}): send no line breaks and no URL-safe alphabet") from err
    if not payload:
        raise _reject("is empty")
    return payload


def _select_rows(tensor: StoredTensor, limits: EmbedsLimits, truncate_to: int | None) -> StoredTensor:
    shape = tensor.array.shape
    matrix = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    if len(matrix) != 2:
        raise _reject(f"must be a 2D tensor of shape (num_tokens, hidden_size), got shape {list(shape)}")
    if matrix[1] != limits.width:
        raise _reject(f"has rows of {matrix[1]} numbers, but the model's hidden size is {limits.width}")
    num_kept = matrix[0] if truncate_to is None else min(matrix[0], truncate_to)
    if num_kept < 1:
        raise _reject("has no rows")
    if num_kept >= limits.max_model_len:
        raise PromptTooLongError(num_kept, limits.max_model_len)
    rows = tensor.array.reshape(matrix)
    return StoredTensor(tensor.dtype, rows[matrix[0] - num_kept :])


def _reject(what: str) -> RequestError:
    return RequestError(f"`{PARAM}` {what}.", param=PARAM)
