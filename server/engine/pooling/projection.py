"""Linear layers after the pooling of some embedding models: sentence-transformers' Dense and ColBERT's."""

import json
from collections.abc import Sequence as Seq
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import linear

from server.engine.pooling.activations import Activation, named_activation
from server.errors import EngineStartError

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
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
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
