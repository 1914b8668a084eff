"""Number formats that numpy lacks, with the rounding of torch: to the nearest, ties to even."""

from typing import Final, Literal

import numpy as np
import numpy.typing as npt


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The upper 16 bits of each number, rounded."""
    bits = values.astype("=f4").view("=u4")
    rounded: npt.NDArray[np.uint32] = bits + 0x7FFF + ((bits >> 16) & 1)
    return (rounded >> 16).astype(np.uint16)


def to_fp8(values: npt.NDArray[np.float32], kind: Literal["fp8_e4m3", "fp8_e5m2"]) -> npt.NDArray[np.uint8]:
    """One byte per number: the code of the nearest number that the format has.

    Numbers that are too large become the largest one in e4m3, and infinity in e5m2.
    """
    numbers = _FP8_NUMBERS[kind]
    sizes = np.abs(values).astype(np.float64)
    below = np.maximum(np.searchsorted(numbers, sizes, side="right") - 1, 0)
    above = np.minimum(below + 1, len(numbers) - 1)
    distance_below, distance_above = sizes - numbers[below], numbers[above] - sizes
    is_odd = below % 2 == 1
    rounds_up = (distance_above < distance_below) | ((distance_above == distance_below) & is_odd)
    codes = np.where(rounds_up, above, below)
    codes = np.where(np.isnan(sizes), _NAN, codes)
    signed: npt.NDArray[np.uint8] = (codes | (np.signbit(values).astype(np.int64) << 7)).astype(np.uint8)
    return signed


def _numbers(num_exponent_bits: int, num_mantissa_bits: int, num_codes: int) -> npt.NDArray[np.float64]:
    """The values of the codes from 0 on, by an exponent with the usual bias and a mantissa."""
    codes = np.arange(num_codes)
    exponents, mantissas = codes >> num_mantissa_bits, codes & ((1 << num_mantissa_bits) - 1)
    bias = (1 << (num_exponent_bits - 1)) - 1
    fractions = mantissas / (1 << num_mantissa_bits)
    is_normal = exponents > 0
    numbers: npt.NDArray[np.float64] = (is_normal + fractions) * 2.0 ** (np.maximum(exponents, 1) - bias)
    return numbers


_NAN: Final = 0x7F
_FP8_NUMBERS: Final = {"fp8_e4m3": _numbers(4, 3, 0x7F), "fp8_e5m2": _numbers(5, 2, 0x7D)}
"""The numbers of the codes up to the largest, in ascending order."""
