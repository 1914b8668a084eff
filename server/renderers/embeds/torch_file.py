"""Reads the one tensor of a `torch.save` file without torch, and without running code from the file.

Such a file is a zip archive of a pickle and of the tensors' numbers. torch's own reader is not used:
importing torch takes seconds, the reader had vulnerabilities (CVE-2025-32434, CVE-2025-62164), and it checks
sparse tensors by a setting that all threads share. This reader accepts only what `torch.save(tensor)` writes.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from server.renderers.embeds.stored_tensor import (
    NUMPY_TYPES,
    Array,
    DenseTensor,
    SparseTensor,
    StoredTensor,
    TensorFileError,
    check_shape,
)
from server.renderers.embeds.tensor_pickle import Call, Storage, read_tensor_pickle

_MAGIC = b"PK\x03\x04"
_OLD_MAGIC = (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80\x02c", b"\x80\x02}")
_PICKLE = "/data.pkl"
_STORED, _ENCRYPTED = 0, 1
_END = struct.Struct("<4s6x H 4x L 2x")
_RECORD = struct.Struct("<4s4x2H8x2L3H8xL")
_LOCAL_HEADER = struct.Struct("<4s22x2H")
_MAX_ENTRIES = 64
_MAX_PICKLE_BYTES = 1 << 14
_STORAGES = {
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.FloatStorage": "float32",
    "torch.DoubleStorage": "float64",
    "torch.LongStorage": "int64",
}


def is_torch_file(payload: memoryview) -> bool:
    """Whether `torch.save` wrote this, in the current format or in the one before version 1.6."""
    return bytes(payload[:4]) == _MAGIC or _is_old(payload)


def read_torch_file(payload: memoryview) -> StoredTensor:
    """The tensor, as views of the payload.

    Raises:
        TensorFileError: the file is broken or does not hold exactly one tensor.
    """
    if _is_old(payload):
        raise TensorFileError("is in the format of torch before 1.6: save it again with torch.save, or as safetensors")
    archive = _Archive(payload)
    try:
        return _Tensors(archive).build(read_tensor_pickle(bytes(archive.pickle)))
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as err:
        raise TensorFileError("holds no plain tensor: save the tensor itself, `torch.save(tensor, file)`") from err


def _is_old(payload: memoryview) -> bool:
    return bytes(payload[:16]).startswith(_OLD_MAGIC)


class _Archive:
    """The zip archive; only uncompressed entries are accepted, so none can expand."""

    def __init__(self, payload: memoryview) -> None:
        try:
            self._entries = dict(_read_directory(payload))
        except (struct.error, UnicodeDecodeError) as err:
            raise TensorFileError("is a broken torch.save file: its zip directory cannot be read") from err
        pickles = [name for name in self._entries if name.endswith(_PICKLE)]
        if len(pickles) != 1:
            raise TensorFileError("is a zip archive that torch.save did not write")
        self._folder = pickles[0].removesuffix(_PICKLE)
        if bytes(self._entries.get(f"{self._folder}/byteorder", b"little")) != b"little":
            raise TensorFileError("is in big-endian byte order: save it on a little-endian machine, or as safetensors")

    @property
    def pickle(self) -> memoryview:
        """The pickle that describes the tensor."""
        found = self._entries[self._folder + _PICKLE]
        if len(found) > _MAX_PICKLE_BYTES:
            raise TensorFileError("holds more than one tensor: save the tensor itself, `torch.save(tensor, file)`")
        return found

    def numbers(self, key: str) -> memoryview:
        """The bytes of one storage."""
        found = self._entries.get(f"{self._folder}/data/{key}")
        if found is None:
            raise TensorFileError("is a broken torch.save file: the tensor's numbers are missing")
        return found


class _Record(NamedTuple):
    """The fields used of a zip directory entry (APPNOTE.TXT 4.3.12)."""

    signature: bytes
    flags: int
    method: int
    compressed_bytes: int
    num_bytes: int
    name_bytes: int
    extra_bytes: int
    comment_bytes: int
    header: int
    """Offset of the entry's local header."""


def _read_directory(payload: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Names and bytes of the entries; torch writes the end record last, without a comment."""
    signature, num_entries, position = _END.unpack_from(payload, max(len(payload) - _END.size, 0))
    if signature != b"PK\x05\x06" or num_entries > _MAX_ENTRIES:
        raise TensorFileError("is a broken torch.save file: it is cut short, or holds more than one tensor")
    for _ in range(num_entries):
        record = _Record(*_RECORD.unpack_from(payload, position))
        if record.signature != b"PK\x01\x02":
            raise TensorFileError("is a broken torch.save file: its zip directory cannot be read")
        begin = position + _RECORD.size
        name = bytes(payload[begin : begin + record.name_bytes]).decode()
        yield name, _read_entry(payload, record)
        position = begin + record.name_bytes + record.extra_bytes + record.comment_bytes


def _read_entry(payload: memoryview, record: _Record) -> memoryview:
    """A view of the entry's bytes; nothing is decompressed."""
    if record.method != _STORED or record.flags & _ENCRYPTED or record.compressed_bytes != record.num_bytes:
        raise TensorFileError("is a compressed zip archive: send the file exactly as torch.save writes it")
    signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(payload, record.header)
    begin = record.header + _LOCAL_HEADER.size + name_bytes + extra_bytes
    if signature != _MAGIC or begin + record.num_bytes > len(payload):
        raise TensorFileError("is a broken torch.save file: it is cut short")
    return payload[begin : begin + record.num_bytes]


class _Tensors:
    """Builds tensors as views of the archive's numbers, from the pickle's description."""

    def __init__(self, archive: _Archive) -> None:
        self._archive = archive

    def build(self, call: Any) -> StoredTensor:
        """The tensor that a recorded call would build.

        A broken one raises ArithmeticError, LookupError, RecursionError, TypeError or ValueError.
        """
        function, args = _as_call(call)
        match function:
            case "torch._utils._rebuild_parameter":
                return self.build(args[0])
            case "torch._utils._rebuild_sparse_tensor":
                return self._build_sparse(*args)
            case _:
                return self._build_dense(call)

    def _build_dense(self, call: Any) -> DenseTensor:
        function, args = _as_call(call)
        if function != "torch._utils._rebuild_tensor_v2":
            raise ValueError(function)
        storage, offset, size, strides = args[:4]
        if not isinstance(storage, Storage):
            raise TypeError("no storage")
        dtype = _STORAGES.get(storage.type)
        if dtype is None:
            raise TensorFileError(f"has numbers of type {storage.type[:40]!r}: they must be floating point")
        numbers = np.frombuffer(self._archive.numbers(storage.key), NUMPY_TYPES[dtype])
        shape, steps = check_shape(_as_ints(size)), _as_ints(strides)
        return DenseTensor(dtype, _strided(numbers, offset, shape, steps))

    def _build_sparse(self, layout: Any, parts: Any) -> SparseTensor:
        if _as_call(layout).args != ("torch.sparse_coo",):
            raise TensorFileError("is sparse in a layout other than COO: send `tensor.to_dense()`")
        indices, values, size = parts[:3]
        shape = size.args[0] if isinstance(size, Call) else size
        places = self._build_dense(indices)
        if places.dtype != "int64":
            raise TensorFileError(f"is sparse with indices of type {places.dtype}")
        return SparseTensor(check_shape(_as_ints(shape)), places.array, self._build_dense(values))


def _strided(numbers: Array, offset: Any, shape: tuple[int, ...], strides: Sequence[int]) -> Array:
    """A strided view, checked to stay within the numbers."""
    if len(strides) != len(shape) or min((_as_int(offset), *strides)) < 0:
        raise ValueError("strides")
    if 0 in shape:
        return np.empty(shape, numbers.dtype)
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if last >= len(numbers):
        raise TensorFileError(f"is a broken torch.save file: shape {list(shape)} reaches beyond its numbers")
    return as_strided(numbers[offset:], shape, [stride * numbers.itemsize for stride in strides], writeable=False)


def _as_call(value: Any) -> Call:
    if not isinstance(value, Call):
        raise TypeError("no call")
    return value


def _as_int(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("no number")
    return value


def _as_ints(values: Any) -> list[int]:
    if not isinstance(values, tuple):
        raise TypeError("no tuple")
    return [_as_int(value) for value in values]
