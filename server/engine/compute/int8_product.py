"""Computes linear layers in int8 with oneDNN. Weights are quantized per output channel, activations per row.

A row's result does not depend on other rows of the batch, for three reasons. The row's scale is its own
largest value, int32 sums are exact, and every other operation rounds each element by itself.
"""

from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Final

import torch
from transformers import PreTrainedModel

from base.errors import EngineMemoryError, EngineStartError
from base.machine.libc import forget_pages
from base.machine.memory import available_bytes
from base.wording import format_bytes
from server.engine.compute.linear import PackedGroup, linear_groups, move_into_huge_pages, packed_memory
from server.engine.features.vision import language_model

_LARGEST: Final = 127
_PART_ELEMENTS: Final = 1 << 20
"""The number of weights that are quantized at once. A float32 copy fits into the third-level cache."""
_SMALLEST: Final = 1e-30
"""The smallest scale. Rows and channels that contain only zeros have this scale."""
_TEMPORARY_BYTES: Final = 4
"""Temporary bytes per weight, for a joined copy of the weights of layers that are quantized together."""
_MATRIX: Final = 2
"""The number of dimensions of a linear layer's weight. A weight for all experts of a layer has three."""


class Int8Product:
    """A `PackedProduct` that quantizes its weight immediately, and packs it for oneDNN later.

    The plain and the packed form compute the same integers and round them in the same way, so a layer may
    be packed between any two steps. The packed form takes unsigned activations, which oneDNN's fast kernels
    need.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._bias = bias
        self._zero_points = torch.zeros(len(weight), dtype=torch.int64)
        self._quantized, self._scales = _quantize(weight)
        self._zero_point = _largest_activation() + 1
        self._middle = torch.tensor(self._zero_point + 0.5)
        """The rows' zero point plus 0.5. Casts to integers round down, so adding 0.5 rounds to the
        nearest."""
        self._is_packed = False
        if not torch.cpu._is_vnni_supported():
            self.pack_next()

    @staticmethod
    def count_bytes(weight: torch.Tensor) -> int:
        return weight.numel()

    def pack_next(self) -> bool:
        """Packs the whole weight. Afterwards the plain form is no longer stored."""
        if not self._is_packed:
            self._quantized = torch.ops.onednn.qlinear_prepack(self._quantized, None)
            self._is_packed = True
        return False

    @property
    def memory(self) -> range:
        return packed_memory(self._quantized)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Quantizes rows to unsigned integers by their largest values, and multiplies them by the weight."""
        rows = x.float()
        largest = rows.abs().amax(dim=-1, keepdim=True).clamp_min_(_SMALLEST)
        rows = torch.addcmul(self._middle, rows, largest.reciprocal(), value=_largest_activation())
        rows = rows.to(torch.int32).to(torch.uint8)  # two casts, because torch's direct one is slow
        output = (self._multiply_packed(rows) if self._is_packed else self._multiply(rows)).mul_(largest).to(x.dtype)
        return output if self._bias is None else output.add_(self._bias)

    def _multiply_packed(self, unsigned: torch.Tensor) -> torch.Tensor:
        sums: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, self._zero_point, self._quantized, self._scales, self._zero_points,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return sums

    def _multiply(self, unsigned: torch.Tensor) -> torch.Tensor:
        signed = unsigned.view(torch.int8).sub(self._zero_point).view(-1, unsigned.shape[-1])
        sums = torch._int_mm(signed, self._quantized.t()).float().mul_(self._scales)
        return sums.view(*unsigned.shape[:-1], -1)


def _quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the weight in int8, and for each output channel the scale of its sums."""
    quantized, scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
    num_rows = max(_PART_ELEMENTS // weight.shape[1], 1)
    for rows, into, scale in zip(*(torch.split(t, num_rows) for t in (weight, quantized, scales)), strict=True):
        largest = rows.abs().amax(dim=1).float().clamp_min_(_SMALLEST)
        into.copy_((rows * (_LARGEST / largest).unsqueeze(1)).round_())
        torch.mul(largest, 1 / (_LARGEST * _largest_activation()), out=scale)
    if not bool(scales.isfinite().all()):
        raise EngineStartError("--quantization int8: the model has weights that are not finite. Leave it out")
    return quantized, scales


@cache
def _largest_activation() -> int:
    """Returns 127. Without VNNI, returns 63, so that int16 sums of two products do not overflow."""
    return _LARGEST if torch.cpu._is_vnni_supported() else _LARGEST // 2


class QuantizedLayers:
    """The linear layers of a language model and of its head, in int8. Their original weights are freed.

    The head's weight is not freed if an embedding shares it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Quantizes one group of layers after the other.

        Raises:
            EngineStartError: this torch has no int8 products, a weight is not finite, or memory is too small.
        """
        if not (hasattr(torch.ops.onednn, "qlinear_pointwise") and hasattr(torch, "_int_mm")):
            raise EngineStartError(f"--quantization int8: torch {torch.__version__} has no int8 products. Leave it out")
        decoder, head = language_model(model), model.get_output_embeddings()
        todo = [*linear_groups(decoder), *(linear_groups(head) if head is not None and decoder is not model else ())]
        self._num_layers = sum(map(len, todo))
        self._num_bytes = sum(Int8Product.count_bytes(layer.weight) for group in todo for layer in group)
        self._plain_bytes = sum(layer.weight.nbytes for group in todo for layer in group)
        self._has_experts = any(weight.dim() > _MATRIX for weight in decoder.parameters())
        largest = max((sum(layer.weight.numel() for layer in group) for group in todo), default=0)
        _check_room(self._num_bytes + _TEMPORARY_BYTES * largest)
        uses = Counter(weight.data_ptr() for module in model.modules() for weight in module.parameters(recurse=False))
        self._groups = [_quantize_group(group, uses) for group in todo]

    def pack(self) -> Iterator[None]:
        """Packs all layers, then moves the packed weights into huge pages. Yields after each piece."""
        for group in self._groups:
            group.pack_next()
            yield
        yield from move_into_huge_pages(group.memory for group in self._groups)

    def __str__(self) -> str:
        sizes = f"{format_bytes(self._num_bytes)} instead of {format_bytes(self._plain_bytes)}"
        experts = "; its experts are not quantized" if self._has_experts else ""
        return f"{self._num_layers} linear layers in int8 ({sizes}){experts}"


def _check_room(needed: int) -> None:
    if needed > (free := available_bytes()):
        raise EngineMemoryError(
            f"--quantization int8 needs {format_bytes(needed)} while it quantizes, and {format_bytes(free)} are "
            "available: free memory or take a smaller model"
        )


def _quantize_group(layers: list[torch.nn.Linear], uses: Counter[int]) -> PackedGroup:
    """Quantizes layers. Frees weights with one user. `uses`: a weight's address -> its number of users.

    All weights of a mapped file share one storage, so the pages of each weight are freed separately.
    """
    quantized = PackedGroup(layers, Int8Product)
    quantized.replace_forwards()
    for layer in layers:
        weight, layer.weight = layer.weight, None  # type: ignore[assignment]
        if uses[weight.data_ptr()] == 1 and weight.is_contiguous():
            forget_pages(range(weight.data_ptr(), weight.data_ptr() + weight.nbytes))
    return quantized
