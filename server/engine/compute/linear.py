"""Packs the weights of linear layers for the products of `linear_products`, while requests run.

In bfloat16, layers that are packed with oneDNN give the results of `torch.nn.functional.linear` bit for bit.
All others have float32 sums, rounded once. tests/server/engine/compute/test_linear.py checks both.
"""

from collections.abc import Iterator
from functools import partial
from typing import TypeGuard

import torch

from server.engine.compute.linear_products import PackedProduct, choose_product
from server.machine.memory import available_bytes

_MIN_OUT_FEATURES = 32
"""A smaller layer gains nothing."""
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of a module that take the same input, in this order; packed as one, they need one product."""


class LinearPacker:
    """Packs a model's plain linear layers a few at a time, so that requests do not wait for all of them.

    Packed and unpacked layers give the same results up to rounding, so that layers may be packed between any
    two steps.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._product: type[PackedProduct] | None = None
        self._todo: list[list[torch.nn.Linear]] | None = None
        self._packing: _PackedGroup | None = None

    def pack_next(self) -> bool:
        """Packs one layer with its siblings, or a part of them; False when none is left."""
        if self._todo is None:  # not in the constructor, which delays the first token
            self._product = choose_product(self._model)
            groups = list(_groups(self._model)) if self._product else []
            self._todo = groups[::-1] if self._product and _has_room(groups, self._product) else []
        if self._packing is None:
            if not self._todo or self._product is None:
                return False
            self._packing = _PackedGroup(self._todo.pop(), self._product)
        if not self._packing.pack_next():
            self._packing.replace_forwards()
            self._packing = None
        return self._packing is not None or bool(self._todo)


class _PackedGroup:
    """Replaces the forwards of layers with the same input. Keeps the plain weights, which may be shared."""

    def __init__(self, linears: list[torch.nn.Linear], product: type[PackedProduct]) -> None:
        self._linears = linears
        biases = [x.bias.detach() for x in linears if x.bias is not None]
        self._compute = product(_stack([x.weight.detach() for x in linears]), _stack(biases) if biases else None)
        self._sizes = [x.out_features for x in linears]
        self._input: torch.Tensor | None = None
        self._outputs: tuple[torch.Tensor, ...] = ()

    def pack_next(self) -> bool:
        """Packs a part of the weights; False when nothing is left."""
        return self._compute.pack_next()

    def replace_forwards(self) -> None:
        """Makes the layers compute with the packed weight."""
        if len(self._linears) == 1:
            self._linears[0].forward = self._compute  # type: ignore[method-assign, assignment]
            return
        for index, linear in enumerate(self._linears):
            linear.forward = partial(self._compute_part, index)  # type: ignore[method-assign]

    def _compute_part(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """The first sibling called with an input computes all outputs; the last one releases them."""
        if x is not self._input:
            self._outputs = torch.split(self._compute(x), self._sizes, dim=-1)
            self._input = x
        output = self._outputs[index]
        if index == len(self._sizes) - 1:
            self._input, self._outputs = None, ()
        return output


def _groups(model: torch.nn.Module) -> Iterator[list[torch.nn.Linear]]:
    """The layers worth packing in the model's order, siblings together."""
    dtype = next(model.parameters()).dtype
    grouped: set[torch.nn.Module] = set()
    for module in model.modules():
        for names in _SIBLINGS:
            siblings = [child for name in names if _is_packable(child := getattr(module, name, None), dtype)]
            if len(siblings) == len(names) and len({(x.in_features, x.bias is None) for x in siblings}) == 1:
                grouped.update(siblings)
                yield siblings
        if _is_packable(module, dtype) and module not in grouped:
            yield [module]


def _is_packable(module: object, dtype: torch.dtype) -> TypeGuard[torch.nn.Linear]:
    """Plain layers that are large enough, without those that a model keeps in another type (routers)."""
    return type(module) is torch.nn.Linear and module.out_features >= _MIN_OUT_FEATURES and module.weight.dtype == dtype


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _has_room(groups: list[list[torch.nn.Linear]], product: type[PackedProduct]) -> bool:
    num_bytes = sum(product.count_bytes(linear.weight) for group in groups for linear in group)
    return num_bytes < available_bytes() / 2
