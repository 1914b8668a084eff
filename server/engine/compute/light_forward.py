"""A forward pass that skips the matrix products, for a model of which only the shapes are of interest."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class LightForward(TorchFunctionMode):
    """While open, linear layers return zeros: their weights, most of the model, are not read from memory."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is torch._C._nn.linear and not kwargs:
            inputs, weight, *_ = args
            return inputs.new_zeros(*inputs.shape[:-1], weight.shape[0])
        return function(*args, **(kwargs or {}))
