"""Packs the weights of linear layers into layouts that make products faster, while requests run.

In bfloat16, layers packed with oneDNN give the same bits as `torch.nn.functional.linear`. All other packed
layers sum in float32 and round once. tests/server/engine/compute/test_linear.py checks both.
"""

import math
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import TypeGuard

import torch

from base.machine.libc import huge_page_parts, use_huge_pages
from base.machine.memory import available_bytes

_PART_ELEMENTS = 1 << 21
"""The number of weights packed at once. In float16 this takes 20 ms, which may delay a new request."""
_PART_ALIGNMENT = 64
_PART_BYTES = 1 << 23
"""The bytes of packed weights that are moved into huge pages at once. This takes 2 ms, or 30 ms on a busy
machine."""
_LARGEST_EXPONENT = 15
"""Scaled weights stay below 2 ** 15, half of float16's range."""
_MAX_SCALE_EXPONENT = 120
"""The scale is at most 2 ** 120, so that the scale itself is a float32 number."""
_FBGEMM_ROWS, _FBGEMM_COLUMNS = 512, 16
"""FBGEMM pads a packed weight to multiples of 512 input features and 16 output features."""


def choose_product(model: torch.nn.Module) -> "type[PackedProduct] | None":
    """The fastest product for the model's type on this processor. None if torch's own product is as fast."""
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
    """Packs weights into oneDNN's blocked layout: float32, and bfloat16 if the processor supports it.

    Products of few rows take half to two thirds of the time of `F.linear`. In bfloat16, results have the
    same bits as those of `F.linear`. In float32, `F.linear` calls another library (MKL), which adds in
    another order.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """`weight` has the shape [out_features, in_features]."""
        self._weight = weight
        self._bias = bias

    @staticmethod
    def count_bytes(weight: torch.Tensor) -> int:
        """The bytes of a weight's packed copy."""
        return weight.nbytes

    def pack_next(self) -> bool:
        """Packs a part of the weight. Returns False when nothing is left to pack."""
        self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight)
        return False

    @property
    def memory(self) -> range:
        """The addresses of the packed weight. The range is empty if they are unknown."""
        begin = torch.ops.mkldnn.data_ptr(self._weight)
        return range(begin, begin + torch.ops.mkldnn._nbytes(self._weight))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the layer's output for rows [..., in_features]. The whole weight must have been packed."""
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return output


class FbgemmProduct:
    """Packs weights as float16 for FBGEMM. AVX2 converts them to float32. Inputs and sums are float32.

    Weights are scaled by a power of two, so that the largest weight is near the largest float16 number.
    After that, only a bfloat16 weight below 2 ** -32 of the largest weight is rounded. The error is smaller
    than the rounding error of a float32 sum.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight_scale = _scale(weight)
        self._input_scale = torch.tensor([1 / self._weight_scale])
        rows = _round_up(math.ceil(_PART_ELEMENTS / weight.shape[1]), _PART_ALIGNMENT)
        weights = torch.split(weight, rows)
        biases = [None] * len(weights) if bias is None else torch.split(bias, rows)
        self._todo = list(zip(weights, biases, strict=True))[::-1]
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

    @property
    def memory(self) -> range:
        return range(0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 1:
            output: torch.Tensor = self(x[None])[0]
            return output
        inputs = x * self._input_scale  # float32, because that is the type of half precision times float32
        if len(self._parts) == 1:
            return torch.ops.quantized.linear_dynamic_fp16(inputs, self._parts[0][1]).to(x.dtype)  # type: ignore[no-any-return]
        output = x.new_empty(*x.shape[:-1], self._out_features)
        for columns, packed in self._parts:
            output[..., columns] = torch.ops.quantized.linear_dynamic_fp16(inputs, packed)
        return output


PackedProduct = OneDnnProduct | FbgemmProduct
"""Computes a linear layer with a packed copy of the layer's weight. Both classes have the same interface."""


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _scale(weight: torch.Tensor) -> float:
    """Returns a power of two, or NaN if a weight is not finite, because FBGEMM would make it finite."""
    largest = float(torch.stack(torch.aminmax(weight)).abs().max())
    if not math.isfinite(largest):
        return math.nan
    return 2.0 ** min(_LARGEST_EXPONENT - math.frexp(largest)[1], _MAX_SCALE_EXPONENT)


_MIN_OUT_FEATURES = 32
"""Layers with fewer output features are not packed, because that would save too little."""
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that a module calls with the same input, in this order. They can be packed as one product."""


_MANY_ROWS = 16
"""On a processor without instructions for half precision, products of so many rows are faster in float32,
although the weight is converted first. Products of 128 rows take a sixth of the time."""


def multiply_in_float32(model: torch.nn.Module) -> None:
    """Makes a model multiply many rows, such as a prompt's, in float32 until its layers are packed."""
    if choose_product(model) is FbgemmProduct:
        for linear in chain.from_iterable(linear_groups(model)):
            linear.forward = partial(_multiply, linear)  # type: ignore[method-assign]


def _multiply(linear: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    if x.numel() < _MANY_ROWS * linear.in_features:
        return torch.nn.functional.linear(x, linear.weight, linear.bias)
    bias = None if linear.bias is None else linear.bias.float()
    output = torch.nn.functional.linear(x.float(), linear.weight.float(), bias)
    return output.to(x.dtype)


def pack_linear_layers(model: torch.nn.Module) -> Iterator[None]:
    """Packs a model's linear layers, then moves the packed weights into huge pages. Yields after each piece.

    Packed and unpacked layers give the same results except for rounding, so steps may run in between.
    """
    product = choose_product(model)
    groups = list(linear_groups(model)) if product is not None else []
    if product is None or not _has_room(groups, product):
        return
    packed = []
    for linears in groups:
        biases = [x.bias.detach() for x in linears if x.bias is not None]
        compute = product(_stack([x.weight.detach() for x in linears]), _stack(biases) if biases else None)
        while compute.pack_next():
            yield
        _replace_forwards(linears, compute)
        packed.append(compute.memory)
        yield
    # While the heap grows, its last page is incomplete, so huge pages come last. In these, a step's products
    # take 26 % less time with one thread, and 15 % less with two, which share the memory's bandwidth.
    for part in huge_page_parts(packed, _PART_BYTES):
        use_huge_pages(part)
        yield


def _replace_forwards(linears: list[torch.nn.Linear], compute: PackedProduct) -> None:
    """Makes layers compute with their packed weight. The caller frees the layers' own weights."""
    if len(linears) == 1:
        linears[0].forward = compute  # type: ignore[method-assign, assignment]
        return
    shared = _SharedProduct(compute, [x.out_features for x in linears])
    for index, linear in enumerate(linears):
        linear.forward = partial(shared.compute_part, index)  # type: ignore[method-assign]


class _SharedProduct:
    """Layers with the same input, packed as one product."""

    def __init__(self, compute: PackedProduct, sizes: list[int]) -> None:
        self._compute = compute
        self._sizes = sizes
        self._input: torch.Tensor | None = None
        self._outputs: tuple[torch.Tensor, ...] = ()

    def compute_part(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """The first layer that gets an input computes the outputs of all. The last layer releases them."""
        if x is not self._input:
            self._outputs = torch.split(self._compute(x), self._sizes, dim=-1)
            self._input = x
        output = self._outputs[index]
        if index == len(self._sizes) - 1:
            self._input, self._outputs = None, ()
        return output


def linear_groups(model: torch.nn.Module) -> Iterator[list[torch.nn.Linear]]:
    """Yields groups of layers that are worth packing, in the model's order. `_SIBLINGS` are in one group."""
    dtype = next(model.parameters()).dtype
    grouped: set[torch.nn.Module] = set()
    for module in model.modules():
        for names in _SIBLINGS:
            siblings = [child for name in names if _is_packable(child := getattr(module, name, None), dtype)]
            forms = {(x.in_features, x.bias is None) for x in siblings}
            if len(siblings) == len(names) and len(forms) == 1:
                grouped.update(siblings)
                yield siblings
        if _is_packable(module, dtype) and module not in grouped:
            yield [module]


def _is_packable(module: object, dtype: torch.dtype) -> TypeGuard[torch.nn.Linear]:
    """Whether this is a plain, large enough linear layer with the model's data type.

    Routers of experts have another type.
    """
    if type(module) is not torch.nn.Linear or module.out_features < _MIN_OUT_FEATURES:
        return False
    return module.weight.dtype == dtype


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _has_room(groups: list[list[torch.nn.Linear]], product: type[PackedProduct]) -> bool:
    num_bytes = sum(product.count_bytes(linear.weight) for group in groups for linear in group)
    return num_bytes < available_bytes() / 2
