"""Reads the one tensor of a safetensors file: eight bytes of header length, a JSON header, the numbers."""

import math
from typing import Any

import msgspec
import numpy as np

from server.renderers.embeds.stored_tensor import NUMPY_TYPES, DenseTensor, TensorFileError, check_shape

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 1 << 16
_TYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def is_safetensors(payload: memoryview) -> bool:
    """Whether a JSON header begins at the ninth byte; no other accepted format begins that way."""
    header = payload[_LENGTH_BYTES : _LENGTH_BYTES + 1]
    return bytes(header) == b"{" and _header_length(payload) <= len(payload) - _LENGTH_BYTES


def read_safetensors(payload: memoryview, *, name: str) -> DenseTensor:
    """The tensor named `name`, or the only tensor, as a view of the payload.

    Raises:
        TensorFileError: there is no such tensor, its type is not floating point, or the file is broken.
    """
    length = _header_length(payload)
    if length > _MAX_HEADER_BYTES:
        raise TensorFileError(f"has a safetensors header of {length} bytes: the limit is {_MAX_HEADER_BYTES} bytes")
    header = payload[_LENGTH_BYTES : _LENGTH_BYTES + length]
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        entry = msgspec.json.decode(_choose(entries, name), type=_Entry)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise TensorFileError(f"has a broken safetensors header ({err})") from err
    return _view(entry, payload[_LENGTH_BYTES + length :])


def _choose(entries: dict[str, Any], name: str) -> Any:
    if name in entries:
        return entries[name]
    if len(entries) != 1:
        raise TensorFileError(
            f"holds {len(entries)} tensors in safetensors format: name one `{name}`, or send one only"
        )
    return next(iter(entries.values()))


def _view(entry: _Entry, data: memoryview) -> DenseTensor:
    dtype = _TYPES.get(entry.dtype)
    if dtype is None:
        raise TensorFileError(f"has numbers of type {entry.dtype[:20]!r}: it must be one of {', '.join(_TYPES)}")
    shape = check_shape(entry.shape)
    begin, end = entry.data_offsets
    num_bytes = math.prod(shape) * np.dtype(NUMPY_TYPES[dtype]).itemsize
    if not 0 <= begin <= end <= len(data) or end - begin != num_bytes:
        raise TensorFileError(
            f"has a broken safetensors header: shape {list(shape)} and bytes {begin} to {end} of {len(data)}"
        )
    return DenseTensor(dtype, np.frombuffer(data[begin:end], NUMPY_TYPES[dtype]).reshape(shape))


def _header_length(payload: memoryview) -> int:
    return int.from_bytes(payload[:_LENGTH_BYTES], "little")
