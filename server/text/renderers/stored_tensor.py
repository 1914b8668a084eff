"""Converts the rows of a file's tensor to another type, with numpy and without torch.

The numbers are views of the file's bytes. Rows are converted in pieces. Rows with numbers that are not finite
are rejected.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from base.errors import ServerError

Array = npt.NDArray[Any]

NUMPY_TYPES = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8"}
"""torch's type -> numpy's type. numpy lacks bfloat16, so these numbers are stored as bits."""

_MAX_DIMENSIONS = 8
_MAX_NUMBERS = 1 << 48
"""The most numbers that a shape may have. numpy rejects shapes above 2**63 bytes, even for empty arrays."""
_PIECE_NUMBERS = 1 << 18
"""Numbers per piece: a megabyte of float32, so that temporary arrays stay in the CPU's cache."""
_EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF << 52}
"""The bits of a number that are all set if the number is infinite or NaN."""


class TensorFileError(ServerError):
    """The bytes are no file of one tensor. The message continues a sentence that begins with "it "."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor. Its array holds bits for bfloat16, and numbers for every other type."""

    dtype: str
    """The type of the numbers, by torch's name."""
    array: Array
    """A view of the file's bytes, with any strides."""


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Checks the shape that a file claims, and returns it.

    Raises:
        TensorFileError: the shape has too many dimensions, a negative length, or too many numbers.
    """
    if len(shape) > _MAX_DIMENSIONS:
        raise TensorFileError(f"has {len(shape)} dimensions")
    if min(shape, default=0) < 0 or math.prod(length or 1 for length in shape) > _MAX_NUMBERS:
        raise TensorFileError(f"has the shape {list(shape)}")
    return tuple(shape)


def to_float32(tensor: StoredTensor) -> npt.NDArray[np.float32]:
    """Returns the numbers rounded to float32. A number that is too large for float32 becomes infinity."""
    if tensor.dtype == "bfloat16":
        return (tensor.array.astype("<u4") << np.uint32(16)).view("<f4")
    with np.errstate(over="ignore", invalid="ignore"):
        return tensor.array.astype("<f4")


class NotFiniteError(ValueError):
    """A row has an infinity or NaN, before or after the conversion."""

    def __init__(self, row: int, *, is_too_large: bool) -> None:
        super().__init__(row)
        self.row = row
        self.is_too_large = is_too_large
        """Whether the number was finite before the conversion."""


def convert_rows(tensor: StoredTensor, dtype: str) -> Array:
    """Returns the matrix in `dtype`, with contiguous rows. Copies nothing if the input has this form.

    Raises:
        NotFiniteError: a number is not finite.
    """
    source = tensor.array
    is_same = tensor.dtype == dtype and source.flags.c_contiguous
    rows = source if is_same else np.empty(source.shape, NUMPY_TYPES[dtype])
    step = max(1, _PIECE_NUMBERS // max(1, source.shape[1]))
    for begin in range(0, len(source), step):
        part = StoredTensor(tensor.dtype, source[begin : begin + step])
        if not is_same:
            rows[begin : begin + step] = _convert(part, dtype)
        is_bad = ~_finite_rows(rows[begin : begin + step], dtype)
        if is_bad.any():
            row = int(is_bad.argmax())
            is_finite = bool(_finite_rows(part.array, part.dtype)[row])
            raise NotFiniteError(begin + row, is_too_large=is_finite)
    return rows


def _convert(tensor: StoredTensor, dtype: str) -> Array:
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
    """Rounds to the upper 16 bits, to nearest even. An infinity stays. A NaN becomes NaN or infinity."""
    bits = np.ascontiguousarray(numbers).view("<u4")
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    is_finite = (bits & np.uint32(_EXPONENTS["float32"])) != _EXPONENTS["float32"]
    return (np.where(is_finite, rounded, bits | np.uint32(0x7F800000)) >> np.uint32(16)).astype("<u2")


def _finite_rows(rows: Array, dtype: str) -> npt.NDArray[np.bool_]:
    bits = rows.view(f"<u{rows.itemsize}")
    mask = bits.dtype.type(_EXPONENTS[dtype])
    found: npt.NDArray[np.bool_] = ((bits & mask) != mask).all(axis=1)
    return found
