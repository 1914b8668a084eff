"""Converts rows between floating-point types in pieces, and rejects numbers that are not finite."""

from typing import Any

import numpy as np
import numpy.typing as npt

from server.renderers.embeds.stored_tensor import NUMPY_TYPES, Array, DenseTensor, to_float32

_PIECE_NUMBERS = 1 << 18
"""Numbers per piece: a megabyte of float32, so that temporary arrays stay small and in the CPU cache."""
_EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000}
"""The bits that are all set in infinities and NaNs."""
_BITS: dict[str, Any] = {"float16": "<u2", "bfloat16": "<u2", "float32": "<u4"}


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
    return _to_bfloat16(numbers)


def _to_bfloat16(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
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
