"""Reads a safetensors file's header and reports all faults of the file, without reading its data.

Layout: 8 bytes, the header's length (little-endian); the header, a JSON object; the tensors' data.
"""

import json
import math
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

_LENGTH_BYTES: Final = 8
_MAX_HEADER_BYTES: Final = 100_000_000
"""The longest header that the safetensors library accepts."""

_DTYPE_BITS: Final = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


class TensorEntry(NamedTuple):
    """The header's entry for one tensor."""

    dtype: str
    num_elements: int
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin


class SafetensorsFile(NamedTuple):
    """A file's tensors by name, and its faults."""

    path: Path
    tensors: dict[str, TensorEntry]
    problems: tuple[str, ...]


def read_safetensors(path: Path) -> SafetensorsFile:
    """Reads the header; never raises: an unreadable file is reported as a problem."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            header, data_begin = _read_header(file, size)
            tensors = {name: _entry(name, value) for name, value in header.items() if name != "__metadata__"}
    except OSError as err:
        return SafetensorsFile(path, {}, (f"cannot be read: {err.strerror}",))
    except _HeaderError as err:
        return SafetensorsFile(path, {}, (str(err),))
    problems = (*_size_problems(tensors, data_begin, size), *_tensor_problems(tensors))
    return SafetensorsFile(path, tensors, problems)


class _HeaderError(ValueError):
    """The header is invalid, so that nothing more can be checked."""


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    prefix = file.read(_LENGTH_BYTES)
    if len(prefix) < _LENGTH_BYTES:
        raise _HeaderError(f"is truncated: {size} bytes are too few for a safetensors file")
    length = int.from_bytes(prefix, "little")
    data_begin = _LENGTH_BYTES + length
    if length > _MAX_HEADER_BYTES:
        raise _HeaderError(f"is not a safetensors file: its first 8 bytes say that the header has {length} bytes")
    if data_begin > size:
        raise _HeaderError(f"is truncated: the header alone needs {data_begin} bytes, the file has {size}")
    try:
        header = json.loads(file.read(length))
    except ValueError as err:
        raise _HeaderError(f"has a corrupt header: {err}") from err
    if not isinstance(header, dict):
        raise _HeaderError("has a corrupt header: it is not a JSON object")
    return header, data_begin


def _entry(name: str, value: Any) -> TensorEntry:
    try:
        begin, end = value["data_offsets"]
        entry = TensorEntry(str(value["dtype"]), math.prod(value["shape"]), begin, end)
    except (TypeError, KeyError, ValueError) as err:
        raise _HeaderError(f"has a corrupt header: tensor {name!r} lacks dtype, shape or data_offsets") from err
    if not all(isinstance(number, int) and number >= 0 for number in entry[1:]) or begin > end:
        raise _HeaderError(f"has a corrupt header: tensor {name!r} lies at {begin} to {end}")
    return entry


def _size_problems(tensors: dict[str, TensorEntry], data_begin: int, size: int) -> list[str]:
    wanted = data_begin + max((tensor.end for tensor in tensors.values()), default=0)
    if size < wanted:
        return [f"is truncated: its header calls for {wanted} bytes, the file has {size}"]
    if size > wanted:
        return [f"is too long: its header calls for {wanted} bytes, the file has {size}"]
    return []


def _tensor_problems(tensors: dict[str, TensorEntry]) -> list[str]:
    problems = []
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
        bits = _DTYPE_BITS.get(tensor.dtype)
        if bits is None:
            problems.append(f"has tensor {name!r} of the unknown type {tensor.dtype!r}")
        elif tensor.num_elements * bits != tensor.num_bytes * 8:
            problems.append(
                f"has tensor {name!r} of {tensor.num_elements} {tensor.dtype} elements in {tensor.num_bytes} bytes"
            )
        if tensor.begin != position:
            problems.append(f"has tensor {name!r} at byte {tensor.begin} of the data where {position} was expected")
        position = tensor.end
    return problems if len(problems) <= 3 else [*problems[:3], f"has {len(problems) - 3} more faulty tensors"]
