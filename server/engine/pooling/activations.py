"""The activation function of a classifier's logits, as config.json sets it and vLLM reads it."""

from typing import Any

import torch
from torch import Tensor

from server.errors import EngineStartError

_PREFIX = "torch.nn.modules."


def classifier_activation(config: Any) -> "Activation":
    """Chosen by `problem_type` or by sentence-transformers' entries; else probabilities.

    Raises:
        EngineStartError: the configuration names a function that torch lacks.
    """
    match getattr(config, "problem_type", None):
        case "regression":
            return Activation("identity")
        case "single_label_classification":
            return Activation("softmax")
        case "multi_label_classification":
            return Activation("sigmoid")
    named = (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
    named = named or getattr(config, "sbert_ce_default_activation_function", None)
    return Activation("softmax") if named is None else named_activation(str(named))


def named_activation(path: str) -> "Activation":
    """A class of torch by its full name, such as `torch.nn.modules.activation.Tanh`.

    Raises:
        EngineStartError: torch has no such function, or the name is outside of torch's modules.
    """
    name = path.rpartition(".")[2]
    # As in vLLM, both Softmax and Sigmoid mean probabilities: a sigmoid for one class, a softmax for more.
    known = {"Identity": "identity", "Softmax": "softmax", "Sigmoid": "softmax"}
    if path.startswith(_PREFIX) and name in known:
        return Activation(known[name])
    module = getattr(torch.nn.modules.activation, name, None) if path.startswith(_PREFIX) else None
    if not (isinstance(module, type) and issubclass(module, torch.nn.Module)):
        raise EngineStartError(
            f"the model's configuration names {path!r}, which is not an activation function of torch"
        )
    return Activation(name, module())


class Activation:
    """A function of logits whose last dimension is the classes."""

    def __init__(self, name: str, module: torch.nn.Module | None = None) -> None:
        self.name = name
        self._module = module

    def __call__(self, logits: Tensor) -> Tensor:
        """With a single class, the probability is the logit's sigmoid."""
        if self._module is not None:
            result: Tensor = self._module(logits)
            return result
        if self.name == "identity":
            return logits
        is_binary = self.name == "sigmoid" or logits.shape[-1] < 2
        return logits.sigmoid() if is_binary else logits.softmax(-1)
