"""Reads the one tensor of a `torch.save` file without torch, and without running code from it.

The file is a zip archive with a pickle and with the tensors' numbers. torch's own reader is not used, because
importing torch takes seconds and its reader had vulnerabilities (CVE-2025-32434, CVE-2025-62164). This reader
accepts only files that `torch.save(tensor)` writes for a dense tensor.
"""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import as_strided

from server.text.renderers.stored_tensor import NUMPY_TYPES, Array, StoredTensor, TensorFileError, check_shape

_MAGIC = b"PK\x03\x04"
_OLD_MAGIC = (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80\x02c", b"\x80\x02}")
_PICKLE = "/data.pkl"
_BYTE_ORDER = b"little"
_ENCRYPTED = 1
_LOCAL_HEADER = struct.Struct("<26x2H")
"""Reads the lengths of an entry's name and of its extra field from its header (APPNOTE.TXT 4.3.7)."""
_MAX_DIRECTORY_BYTES = 1 << 14
_MAX_PICKLE_BYTES = 1 << 14
_SPARSE = "torch._utils._rebuild_sparse_tensor"
_NO_TENSOR = "holds no plain tensor: save the tensor itself, `torch.save(tensor, file)`"
_STORAGES = {
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.FloatStorage": "float32",
    "torch.DoubleStorage": "float64",
}


def read_torch_file(payload: bytes) -> StoredTensor:
    """Returns the tensor as a view of the payload.

    Raises:
        TensorFileError: the file is not of `torch.save`, is broken, or does not hold exactly one tensor.
    """
    if payload.startswith(_OLD_MAGIC):
        raise TensorFileError("is in the format of torch before 1.6: save it again with torch.save")
    if not payload.startswith(_MAGIC):
        raise TensorFileError("is no file of torch.save: send base64 of what `torch.save(tensor, file)` writes")
    archive = _Archive(payload)
    try:
        tensor = _TensorUnpickler(archive).load()
    except (ArithmeticError, EOFError, LookupError, TypeError, ValueError, struct.error, pickle.PickleError) as err:
        raise TensorFileError(_NO_TENSOR) from err
    if not isinstance(tensor, StoredTensor):
        raise TensorFileError(_NO_TENSOR)
    return tensor


class _File(io.BytesIO):
    """The payload as a file. Limits each read, so that zipfile reads only a directory of a few entries."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(_MAX_DIRECTORY_BYTES if size is None or size < 0 else min(size, _MAX_DIRECTORY_BYTES))


class _Archive:
    """The zip archive. Accepts only uncompressed entries, so that no entry can expand."""

    def __init__(self, payload: bytes) -> None:
        self._payload = memoryview(payload)
        try:
            with zipfile.ZipFile(_File(payload)) as file:
                self._entries = {entry.filename: entry for entry in file.infolist()}
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as err:
            why = "is a broken torch.save file: it is cut short, or holds more than one tensor"
            raise TensorFileError(why) from err
        pickles = [name for name in self._entries if name.endswith(_PICKLE)]
        if len(pickles) != 1:
            raise TensorFileError("is a zip archive that torch.save did not write")
        self._folder = pickles[0].removesuffix(_PICKLE)
        order = self._entries.get(f"{self._folder}/byteorder")
        if order is not None and self._view(order) != _BYTE_ORDER:
            raise TensorFileError("is in big-endian byte order: save it on a little-endian machine")

    @property
    def pickle(self) -> memoryview:
        found = self._view(self._entries[self._folder + _PICKLE])
        if len(found) > _MAX_PICKLE_BYTES:
            raise TensorFileError("holds more than one tensor: save the tensor itself, `torch.save(tensor, file)`")
        return found

    def numbers(self, key: str) -> memoryview:
        """The bytes of the storage with this key."""
        found = self._entries.get(f"{self._folder}/data/{key}")
        if found is None:
            raise TensorFileError("is a broken torch.save file: the tensor's numbers are missing")
        return self._view(found)

    def _view(self, entry: zipfile.ZipInfo) -> memoryview:
        """Returns the bytes of an entry. Nothing is decompressed or copied."""
        is_stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        if not is_stored or entry.flag_bits & _ENCRYPTED:
            raise TensorFileError("is a compressed zip archive: send the file exactly as torch.save writes it")
        header = self._payload[max(entry.header_offset, 0) :]
        if len(header) < _LOCAL_HEADER.size or header[: len(_MAGIC)] != _MAGIC:
            raise TensorFileError("is a broken torch.save file: it is cut short")
        begin = _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack_from(header))
        found = header[begin : begin + entry.file_size]
        if len(found) < entry.file_size:
            raise TensorFileError("is a broken torch.save file: it is cut short")
        return found


_INSTRUCTIONS: Final = b"".join(
    (
        pickle.PROTO,
        pickle.FRAME,
        pickle.NONE,
        pickle.NEWTRUE,
        pickle.NEWFALSE,
        pickle.BININT,
        pickle.BININT1,
        pickle.BININT2,
        pickle.LONG1,
        pickle.BINUNICODE,
        pickle.SHORT_BINUNICODE,
        pickle.MARK,
        pickle.EMPTY_TUPLE,
        pickle.TUPLE,
        pickle.TUPLE1,
        pickle.TUPLE2,
        pickle.TUPLE3,
        pickle.BINPUT,
        pickle.LONG_BINPUT,
        pickle.MEMOIZE,
        pickle.BINGET,
        pickle.LONG_BINGET,
        pickle.GLOBAL,
        pickle.STACK_GLOBAL,
        pickle.REDUCE,
        pickle.BINPERSID,
        pickle.STOP,
    )
)
"""The pickle opcodes that a tensor needs, in protocols 2 to 5.

All other opcodes are rejected, because some of them set attributes, fill containers or reserve memory.
"""


@dataclass(frozen=True)
class _Storage:
    """The memory that one or more tensors are views of."""

    dtype: str
    numbers: Array


class _TensorUnpickler(pickle._Unpickler):
    """Builds tensors as views of the archive's numbers. Names in the pickle are looked up, never imported.

    The base class is the unpickler in pure Python, because the unpickler in C reserves memory for the largest
    index in a pickle.
    """

    dispatch = {code: pickle._Unpickler.dispatch[code] for code in _INSTRUCTIONS}

    def __init__(self, archive: _Archive) -> None:
        super().__init__(io.BytesIO(archive.pickle))
        self._archive = archive

    def find_class(self, module: str, name: str) -> str | Callable[..., object]:
        """Returns this module's replacement of the named function. Returns a storage type as its name."""
        known = f"{module}.{name}"
        if known == _SPARSE:
            raise TensorFileError("is sparse, which needs `--engine vllm`: send `tensor.to_dense()`")
        return known if name.endswith("Storage") else _FUNCTIONS[known]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, *_ = pid
        if kind != "storage" or type(storage) is not str or type(key) is not str:
            raise TypeError("no storage")
        dtype = _STORAGES.get(storage)
        if dtype is None:
            raise TensorFileError(f"has numbers of type {storage[:40]!r}: they must be floating point")
        return _Storage(dtype, np.frombuffer(self._archive.numbers(key), NUMPY_TYPES[dtype]))


def _build_dense(storage: Any, offset: Any, size: Any, strides: Any, *_: Any) -> StoredTensor:
    if not isinstance(storage, _Storage):
        raise TypeError("no storage")
    return StoredTensor(
        storage.dtype, _strided(storage.numbers, offset, check_shape(_as_ints(size)), _as_ints(strides))
    )


_FUNCTIONS: Final[dict[str, Callable[..., object]]] = {
    "torch._utils._rebuild_tensor_v2": _build_dense,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "collections.OrderedDict": lambda: None,
}
"""Function or class -> its replacement. The time of a call grows only with the length of its arguments."""


def _strided(numbers: Array, offset: Any, shape: tuple[int, ...], strides: Sequence[int]) -> Array:
    """Returns a strided view. Checks that the view stays within the numbers."""
    if len(strides) != len(shape) or min((_as_int(offset), *strides)) < 0:
        raise ValueError("strides")
    if 0 in shape:
        return np.empty(shape, numbers.dtype)
    steps = [(length - 1) * stride for length, stride in zip(shape, strides, strict=True)]
    last = offset + sum(steps)
    if last >= len(numbers):
        raise TensorFileError(f"is a broken torch.save file: shape {list(shape)} reaches beyond its numbers")
    return as_strided(numbers[offset:], shape, [stride * numbers.itemsize for stride in strides], writeable=False)


def _as_int(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("no number")
    return value


def _as_ints(values: Any) -> list[int]:
    if not isinstance(values, tuple):
        raise TypeError("no tuple")
    return [_as_int(value) for value in values]
