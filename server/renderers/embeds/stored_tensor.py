"""A tensor as stored in a file, and its rows in another type, without torch.

The numbers are numpy views of the file's bytes. Rows are converted in pieces, and rejected if they are not
finite.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from base.errors import ServerError

Array = npt.NDArray[Any]

NUMPY_TYPES = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8", "int64": "<i8"}
"""torch's types -> numpy's; bfloat16, which numpy does not have, is stored as its bits."""
FLOAT_TYPES = ("float16", "bfloat16", "float32", "float64")

_MAX_DIMENSIONS = 8
_MAX_NUMBERS = 1 << 48
"""Far more than any file holds: numpy cannot address more than 2**63 bytes, not even in an empty array."""
_VALUES_PER_STEP = 1 << 16
"""Values added per call of `np.add.at`, which holds the GIL: this many take half a millisecond."""
_PIECE_NUMBERS = 1 << 18
"""Numbers per piece: a megabyte of float32, so that temporary arrays stay small and in the CPU cache."""
_EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000}
"""The bits that are all set in infinities and NaNs."""
_BITS: dict[str, Any] = {"float16": "<u2", "bfloat16": "<u2", "float32": "<u4"}


class TensorFileError(ServerError):
    """The bytes are not a file of one tensor; the message continues a sentence that begins with "it "."""


@dataclass(frozen=True)
class DenseTensor:
    """A tensor whose array holds bits for bfloat16, and numbers for all other types."""

    dtype: str
    """torch's name."""
    array: Array
    """A view of the file's bytes, with any strides."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def to_dense(self) -> "DenseTensor":
        return self


@dataclass(frozen=True)
class SparseTensor:
    """A matrix in coordinate form; a small file may describe a large matrix."""

    shape: tuple[int, ...]
    indices: Array
    """Shape [2, number of values]."""
    values: DenseTensor

    @property
    def dtype(self) -> str:
        return self.values.dtype

    def to_dense(self) -> DenseTensor:
        """The whole matrix as float32, or as float64 if the values are; values at the same position are
        added.

        The caller has checked that `shape` is small enough.

        Raises:
            TensorFileError: indices and values do not match, or an index is out of range.
        """
        rows, columns = self._checked_indices()
        values = to_float32(self.values) if self.dtype != "float64" else self.values.array
        dense = np.zeros(self.shape, dtype=values.dtype)
        for begin in range(0, len(values), _VALUES_PER_STEP):
            part = slice(begin, begin + _VALUES_PER_STEP)
            np.add.at(dense, (rows[part], columns[part]), values[part])
        return DenseTensor("float64" if self.dtype == "float64" else "float32", dense)

    def _checked_indices(self) -> Array:
        if len(self.shape) != 2 or self.indices.shape != (2, *self.values.shape) or self.values.array.ndim != 1:
            raise TensorFileError(
                f"is sparse with indices of shape {list(self.indices.shape)} and values of shape "
                f"{list(self.values.shape)}, which make no matrix of shape {list(self.shape)}"
            )
        for axis, indices in enumerate(self.indices):
            least, most = (int(indices.min()), int(indices.max())) if indices.size else (0, -1)
            if least < 0 or most >= self.shape[axis]:
                wrong = least if least < 0 else most
                raise TensorFileError(f"is sparse with the index {wrong} in a dimension of {self.shape[axis]}")
        return self.indices


StoredTensor = DenseTensor | SparseTensor


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape that a file claims, checked.

    Raises:
        TensorFileError: the shape has too many dimensions, one of negative length, or one that is too long.
    """
    if len(shape) > _MAX_DIMENSIONS:
        raise TensorFileError(f"has {len(shape)} dimensions")
    if min(shape, default=0) < 0 or math.prod(length or 1 for length in shape) > _MAX_NUMBERS:
        raise TensorFileError(f"has the shape {list(shape)}")
    return tuple(shape)


def to_float32(tensor: DenseTensor) -> npt.NDArray[np.float32]:
    """The numbers rounded to float32; a number that is too large becomes infinity."""
    if tensor.dtype == "bfloat16":
        return (tensor.array.astype("<u4") << np.uint32(16)).view("<f4")
    with np.errstate(over="ignore", invalid="ignore"):
        return tensor.array.astype("<f4")


class NotFiniteError(ValueError):
    """A row holds infinity or NaN, in its own type or after conversion."""

    def __init__(self, row: int, *, is_too_large: bool) -> None:
        super().__init__(row)
        self.row = row
        self.is_too_large = is_too_large
        """Whether the number is finite in its own type."""


def convert_rows(tensor: DenseTensor, dtype: str) -> Array:
    """The matrix in `dtype` with contiguous rows; shares the input's memory if no conversion is needed.

    Raises:
        NotFiniteError: a number is not finite.
    """
    source = tensor.array
    is_same = tensor.dtype == dtype and source.flags.c_contiguous
    rows = source if is_same else np.empty(source.shape, NUMPY_TYPES[dtype])
    step = max(1, _PIECE_NUMBERS // max(1, source.shape[1]))
    for begin in range(0, len(source), step):
        part = DenseTensor(tensor.dtype, source[begin : begin + step])
        if not is_same:
            rows[begin : begin + step] = _convert(part, dtype)
        is_bad = ~_finite_rows(rows[begin : begin + step], dtype)
        if is_bad.any():
            row = int(is_bad.argmax())
            is_finite = bool(_is_finite(part)[row].all())
            raise NotFiniteError(begin + row, is_too_large=is_finite)
    return rows


def _is_finite(tensor: DenseTensor) -> npt.NDArray[np.bool_]:
    return np.isfinite(to_float32(tensor) if tensor.dtype == "bfloat16" else tensor.array)


def _convert(tensor: DenseTensor, dtype: str) -> Array:
    if tensor.dtype == dtype:
        return tensor.array
    numbers = to_float32(tensor)
    if dtype == "float32":
        return numbers
    if dtype == "float16":
        with np.errstate(over="ignore", invalid="ignore"):
            return numbers.astype("<f2")
    return to_bfloat16(numbers)


def to_bfloat16(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The upper halves, rounded to nearest even; infinities stay, and a NaN becomes NaN or infinity."""
    bits = np.ascontiguousarray(numbers).view("<u4")
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    is_finite = (bits & np.uint32(_EXPONENTS["float32"])) != _EXPONENTS["float32"]
    return (np.where(is_finite, rounded, bits | np.uint32(0x7F800000)) >> np.uint32(16)).astype("<u2")


def _finite_rows(rows: Array, dtype: str) -> npt.NDArray[np.bool_]:
    bits = rows.view(_BITS[dtype])
    mask = bits.dtype.type(_EXPONENTS[dtype])
    found: npt.NDArray[np.bool_] = ((bits & mask) != mask).all(axis=1)
    return found
