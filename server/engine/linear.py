"""Linear layers with weights in oneDNN's blocked layout, twice as fast for small batches on a CPU.

In bfloat16 the results equal those of `torch.nn.functional.linear` bit for bit, which
tests/server/engine/test_linear.py checks.
"""

from collections.abc import Iterator
from functools import partial
from typing import TypeGuard

import torch

from server.machine.memory import available_bytes

_MIN_OUT_FEATURES = 32
"""A smaller layer gains nothing."""
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of a module that take the same input, in this order; packed as one, they need one product."""


class LinearPacker:
    """Packs a model's plain linear layers a few at a time, so that requests do not wait for all of them.

    Packed and unpacked layers give the same results, so that layers may be packed between any two steps.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._todo: list[list[torch.nn.Linear]] | None = None
        self._packed: list[_PackedGroup] = []

    def pack_next(self) -> bool:
        """Packs one layer with its siblings; False when none is left."""
        if self._todo is None:  # not in the constructor, which delays the first token
            self._todo = list(_groups(self._model))[::-1] if _can_pack(self._model) else []
        if not self._todo:
            return False
        group = _PackedGroup(self._todo.pop())
        group.replace_forwards()
        self._packed.append(group)
        return bool(self._todo)

    def unpack(self) -> None:
        """Frees all packed weights; `pack_next` packs them again."""
        for group in self._packed:
            group.restore_forwards()
        self._packed.clear()
        self._todo = None


class _PackedGroup:
    """Replaces the forwards of layers with the same input. Keeps the plain weights, which may be shared."""

    def __init__(self, linears: list[torch.nn.Linear]) -> None:
        self._linears = linears
        self._weight = torch.ops.mkldnn._reorder_linear_weight(_stack([x.weight.detach() for x in linears]))
        biases = [x.bias.detach() for x in linears if x.bias is not None]
        self._bias = _stack(biases) if biases else None
        self._sizes = [x.out_features for x in linears]
        self._input: torch.Tensor | None = None
        self._outputs: tuple[torch.Tensor, ...] = ()

    def replace_forwards(self) -> None:
        """Makes the layers compute with the packed weight."""
        if len(self._linears) == 1:
            self._linears[0].forward = self._compute  # type: ignore[method-assign, assignment]
            return
        for index, linear in enumerate(self._linears):
            linear.forward = partial(self._compute_part, index)  # type: ignore[method-assign]

    def restore_forwards(self) -> None:
        """Makes the layers compute with their plain weights again."""
        for linear in self._linears:
            del linear.forward

    def _compute(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return output

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
    grouped: set[torch.nn.Module] = set()
    for module in model.modules():
        for names in _SIBLINGS:
            siblings = [child for name in names if _is_packable(child := getattr(module, name, None))]
            if len(siblings) == len(names) and len({(x.in_features, x.bias is None) for x in siblings}) == 1:
                grouped.update(siblings)
                yield siblings
        if _is_packable(module) and module not in grouped:
            yield [module]


def _is_packable(module: object) -> TypeGuard[torch.nn.Linear]:
    return type(module) is torch.nn.Linear and module.out_features >= _MIN_OUT_FEATURES


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _can_pack(model: torch.nn.Module) -> bool:
    """oneDNN's bfloat16 kernels need AVX-512 or AMX. Other types gain nothing and would round differently."""
    parameter = next(model.parameters())
    return (
        parameter.device.type == "cpu"
        and parameter.dtype == torch.bfloat16
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        and _has_room_for_copy(model)
    )


def _has_room_for_copy(model: torch.nn.Module) -> bool:
    num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    return num_bytes < available_bytes() / 2
