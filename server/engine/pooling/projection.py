"""Functions after the pooling that a model's files define: linear layers of embedding models, activations."""

import json
from collections.abc import Callable
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import linear

from server.errors import EngineStartError

Activation = Callable[[Tensor], Tensor]

_MAX_MESSAGE = 400
_MODULES = "torch.nn.modules."
_IDENTITY = f"{_MODULES}linear.Identity"


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

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        self.weight = weight.float()
        self._bias = None if bias is None else bias.float()
        self._activation = activation

    def __call__(self, vectors: Tensor) -> Tensor:
        """Takes one vector or rows of vectors."""
        return self._activation(linear(vectors, self.weight, self._bias))


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
    return Projection([DenseLayer(tensors["linear.weight"].to(device), None, nn.Identity())])


def _load_layer(folder: Path, device: torch.device) -> DenseLayer:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = _read_tensors(folder, ("linear.weight", "linear.bias"))
        weight, bias = tensors["linear.weight"], tensors.get("linear.bias")
        activation = _named_activation(config.get("activation_function") or _IDENTITY)
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


def classifier_activation(config: Any) -> Activation:
    """The activation of a classifier's logits, as vLLM reads it from config.json; else probabilities.

    Raises:
        EngineStartError: the configuration names a function that torch lacks.
    """
    match getattr(config, "problem_type", None):
        case "regression":
            return nn.Identity()
        case "single_label_classification":
            return _probabilities
        case "multi_label_classification":
            return torch.sigmoid
    named = (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
    named = named or getattr(config, "sbert_ce_default_activation_function", None)
    return _probabilities if named is None else _named_activation(str(named))


def _named_activation(path: str) -> Activation:
    """A class of torch by its full name, such as `torch.nn.modules.activation.Tanh`."""
    name = path.rpartition(".")[2] if path.startswith(_MODULES) else ""
    if name == "Identity":
        return nn.Identity()
    if name in ("Softmax", "Sigmoid"):
        return _probabilities  # as in vLLM
    module = getattr(nn.modules.activation, name, None)
    if not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise EngineStartError(
            f"the model's configuration names {path!r}, which is not an activation function of torch"
        )
    return module()


def _probabilities(logits: Tensor) -> Tensor:
    """Of the classes in the last dimension; that of a single class is the logit's sigmoid."""
    return logits.sigmoid() if logits.shape[-1] < 2 else logits.softmax(-1)
