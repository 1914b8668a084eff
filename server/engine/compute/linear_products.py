"""Products of rows with packed weights, where they are faster than torch's own."""

import math
from typing import Protocol

import torch

_PART_ELEMENTS = 1 << 21
"""Weights that are packed in one piece: 20 ms for float16, for which a new request may have to wait."""
_PART_ALIGNMENT = 64
_LARGEST_EXPONENT = 15
"""Scaled weights are below 2 ** 15, half of float16's range."""
_MAX_SCALE_EXPONENT = 120
"""The scale itself is a float32."""
_FBGEMM_ROWS, _FBGEMM_COLUMNS = 512, 16
"""FBGEMM pads a packed weight to whole blocks of so many input and output features."""


class PackedProduct(Protocol):
    """A linear layer's function with a packed copy of its weight [out_features, in_features]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None: ...

    @staticmethod
    def count_bytes(weight: torch.Tensor) -> int:
        """The size of a weight's packed copy."""

    def pack_next(self) -> bool:
        """Packs a part of the weight; False when nothing is left."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output for rows [..., in_features]; needs the whole weight."""


def choose_product(model: torch.nn.Module) -> type[PackedProduct] | None:
    """The fastest product for the model's type on this processor; None if torch's own is as fast."""
    parameter = next(model.parameters())
    if parameter.device.type != "cpu":
        return None
    has_onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    if parameter.dtype == torch.float32 and has_onednn:
        return OneDnnProduct
    if parameter.dtype == torch.bfloat16 and has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return OneDnnProduct
    is_fast_already = parameter.dtype == torch.float16 and has_onednn and torch.ops.mkldnn._is_mkldnn_fp16_supported()
    if parameter.dtype not in (torch.bfloat16, torch.float16) or is_fast_already:
        return None
    return FbgemmProduct if torch.backends.quantized.engine in ("x86", "fbgemm") else None


class OneDnnProduct:
    """oneDNN's blocked layout for float32, and for bfloat16 where the processor has instructions for it.

    Products of few rows take half to two thirds of the time of `F.linear`. In bfloat16 they have the same
    bits; in float32 `F.linear` calls another library (MKL), which adds in another order.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    @staticmethod
    def count_bytes(weight: torch.Tensor) -> int:
        return weight.nbytes

    def pack_next(self) -> bool:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight)
        return False

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return output


class FbgemmProduct:
    """FBGEMM's float16 weights, which AVX2 converts to float32 in registers; inputs and sums are float32.

    Weights are scaled by a power of two, so that the largest ones are near the largest of float16. Then only
    bfloat16 weights below 2 ** -32 of the largest are rounded, by less than a float32 sum loses.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight_scale = _scale(weight)
        self._input_scale = torch.tensor([1 / self._weight_scale])
        rows = _round_up(math.ceil(_PART_ELEMENTS / weight.shape[1]), _PART_ALIGNMENT)
        biases = torch.split(bias, rows) if bias is not None else [None] * -(-weight.shape[0] // rows)
        self._todo = list(zip(torch.split(weight, rows), biases, strict=True))[::-1]
        self._scaled = torch.empty(0)  # one buffer for all parts: freed ones would leave gaps between the packed
        self._parts: list[tuple[slice, torch.ScriptObject]] = []
        self._out_features = 0

    @staticmethod
    def count_bytes(weight: torch.Tensor) -> int:
        out_features, in_features = weight.shape
        return _round_up(out_features, _FBGEMM_COLUMNS) * _round_up(in_features, _FBGEMM_ROWS) * torch.half.itemsize

    def pack_next(self) -> bool:
        weight, bias = self._todo.pop()
        scaled = self._scaled.resize_(weight.shape).copy_(weight).mul_(self._weight_scale)
        packed = torch.ops.quantized.linear_prepack_fp16(scaled, bias.float() if bias is not None else None)
        if not self._todo:
            self._scaled = torch.empty(0)
        first = self._out_features
        self._out_features += weight.shape[0]
        self._parts.append((slice(first, self._out_features), packed))
        return bool(self._todo)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 1:
            output: torch.Tensor = self(x[None])[0]
            return output
        inputs = x * self._input_scale  # float32, as half precision times float32 is
        if len(self._parts) == 1:
            return torch.ops.quantized.linear_dynamic_fp16(inputs, self._parts[0][1]).to(x.dtype)  # type: ignore[no-any-return]
        output = x.new_empty(*x.shape[:-1], self._out_features)
        for columns, packed in self._parts:
            output[..., columns] = torch.ops.quantized.linear_dynamic_fp16(inputs, packed)
        return output


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _scale(weight: torch.Tensor) -> float:
    """A power of two; NaN if a weight is not finite, which FBGEMM would replace by a finite one."""
    largest = float(torch.stack(torch.aminmax(weight)).abs().max())
    if not math.isfinite(largest):
        return math.nan
    return 2.0 ** min(_LARGEST_EXPONENT - math.frexp(largest)[1], _MAX_SCALE_EXPONENT)
