"""Linear layers after the pooling of some embedding models: sentence-transformers' Dense and ColBERT's."""

from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import linear

from base.errors import EngineStartError
from base.json_depth import read_json

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


_MAX_MESSAGE = 400
_IDENTITY = "torch.nn.modules.linear.Identity"


class Projection:
    """Linear layers with their activations, in float32."""

    def __init__(self, layers: Seq["DenseLayer"]) -> None:
        self._layers = layers

    @property
    def out_features(self) -> int:
        """Length of an output vector."""
        return int(self._layers[-1].weight.shape[0])

    def __call__(self, vectors: Tensor) -> Tensor:
        """Takes one vector or rows of vectors."""
        for layer in self._layers:
            vectors = layer(vectors)
        return vectors


class DenseLayer:
    """One linear layer with its activation."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, activation: Activation | None = None) -> None:
        self.weight = weight.float()
        self._bias = None if bias is None else bias.float()
        self._activation = activation

    def __call__(self, vectors: Tensor) -> Tensor:
        """Takes one vector or rows of vectors."""
        vectors = linear(vectors, self.weight, self._bias)
        return vectors if self._activation is None else self._activation(vectors)


def load_dense(folders: Seq[Path], device: torch.device) -> Projection | None:
    """Loads sentence-transformers' layers from these folders; None without folders.

    Raises:
        EngineStartError: a folder lacks its weights or its configuration.
    """
    return Projection([_load_layer(folder, device) for folder in folders]) if folders else None


def load_colbert(folder: Path, device: torch.device) -> Projection:
    """Loads the layer named `linear` from the folder's weights.

    Raises:
        EngineStartError: the weights have no such layer.
    """
    tensors = _read_tensors(folder, ("linear.weight",))
    if "linear.weight" not in tensors:
        raise EngineStartError(f"the weights in {folder} lack ColBERT's linear.weight")
    return Projection([DenseLayer(tensors["linear.weight"].to(device))])


def _load_layer(folder: Path, device: torch.device) -> DenseLayer:
    try:
        config = read_json((folder / "config.json").read_text(encoding="utf-8"))
        tensors = _read_tensors(folder, ("linear.weight", "linear.bias"))
        weight, bias = tensors["linear.weight"], tensors.get("linear.bias")
        activation = named_activation(config.get("activation_function") or _IDENTITY)
    except (OSError, ValueError, KeyError) as err:
        raise EngineStartError(f"cannot read the linear layer in {folder}: {type(err).__name__}: {err}") from err
    return DenseLayer(weight.to(device), None if bias is None else bias.to(device), activation)


def _read_tensors(folder: Path, names: Seq[str]) -> dict[str, Tensor]:
    """The tensors with these names, as far as the folder's files have them."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in set(names) & set(file.keys())}
    if not found and (path := folder / "pytorch_model.bin").is_file():
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as err:  # the type depends on the file's content
            reason = " ".join(str(err).split())[:_MAX_MESSAGE]
            raise EngineStartError(f"cannot load the weights in {path}: {type(err).__name__}: {reason}") from err
        found = {name: tensors[name] for name in names if name in tensors}
    return found
