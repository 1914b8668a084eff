"""Linear layers that some embedding models have after pooling: sentence-transformers' Dense and ColBERT's."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import linear

from base.errors import EngineStartError
from base.json_depth import read_json
from server.engine.model_loading import describe_error

Activation = Callable[[Tensor], Tensor]
"""A function of logits. The last dimension of the logits has one entry per class."""
_PREFIX = "torch.nn.modules."


def _identity(logits: Tensor) -> Tensor:
    return logits


def _probabilities(logits: Tensor) -> Tensor:
    """Returns the classes' probabilities in the last dimension: softmax, or sigmoid for a single class."""
    return logits.sigmoid() if logits.shape[-1] < 2 else logits.softmax(-1)


def classifier_activation(config: Any) -> Activation:
    """Returns the function that `problem_type` or sentence-transformers' entries name, or `_probabilities`.

    Raises:
        EngineStartError: the configuration names a function that torch lacks.
    """
    match getattr(config, "problem_type", None):
        case "regression":
            return _identity
        case "single_label_classification":
            return _probabilities
        case "multi_label_classification":
            return torch.sigmoid
    named = (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
    named = named or getattr(config, "sbert_ce_default_activation_function", None)
    return _probabilities if named is None else _named_activation(str(named))


def _named_activation(path: str) -> Activation:
    """Returns torch's activation with this full name, such as `torch.nn.modules.activation.Tanh`.

    Raises:
        EngineStartError: torch has no such activation, or the name is outside torch's activation modules.
    """
    name = path.rpartition(".")[2]
    # As in vLLM, Softmax and Sigmoid both mean probabilities: sigmoid for one class, softmax for more.
    known = {"Identity": _identity, "Softmax": _probabilities, "Sigmoid": _probabilities}
    if path.startswith(_PREFIX) and name in known:
        return known[name]
    module = getattr(torch.nn.modules.activation, name, None) if path.startswith(_PREFIX) else None
    if not (isinstance(module, type) and issubclass(module, torch.nn.Module)):
        raise EngineStartError(
            f"the model's configuration names {path!r}, which is not an activation function of torch"
        )
    activation: Activation = module()
    return activation


class _Layer(NamedTuple):
    weight: Tensor
    bias: Tensor | None
    activation: Activation


class Projection:
    """Linear layers with their activations, in float32."""

    def __init__(self, layers: Seq[_Layer]) -> None:
        self._layers = layers

    @property
    def out_features(self) -> int:
        return int(self._layers[-1].weight.shape[0])

    def __call__(self, vectors: Tensor) -> Tensor:
        """Takes one vector, or rows of vectors."""
        for weight, bias, activation in self._layers:
            vectors = activation(linear(vectors, weight, bias))
        return vectors


def load_dense(folders: Seq[Path], device: torch.device) -> Projection | None:
    """Loads sentence-transformers' layers from these folders. Returns None if there are no folders.

    Raises:
        EngineStartError: a folder lacks its weights or its configuration.
    """
    return Projection([_load_layer(folder, device) for folder in folders]) if folders else None


def load_colbert(folder: Path, device: torch.device) -> Projection:
    """Loads ColBERT's layer `linear` from the folder's weights.

    Raises:
        EngineStartError: the weights have no such layer.
    """
    tensors = _read_tensors(folder, ("linear.weight",))
    if "linear.weight" not in tensors:
        raise EngineStartError(f"the weights in {folder} lack ColBERT's linear.weight")
    return Projection([_Layer(tensors["linear.weight"].to(device).float(), None, _identity)])


def _load_layer(folder: Path, device: torch.device) -> _Layer:
    try:
        config = read_json((folder / "config.json").read_text(encoding="utf-8"))
        tensors = _read_tensors(folder, ("linear.weight", "linear.bias"))
        weight, bias = tensors["linear.weight"], tensors.get("linear.bias")
        activation = _named_activation(config.get("activation_function") or _PREFIX + "linear.Identity")
    except (OSError, ValueError, KeyError) as err:
        raise EngineStartError(f"cannot read the linear layer in {folder}: {type(err).__name__}: {err}") from err
    weight = weight.to(device).float()
    bias = None if bias is None else bias.to(device).float()
    return _Layer(weight, bias, activation)


def _read_tensors(folder: Path, names: Seq[str]) -> dict[str, Tensor]:
    """Returns the tensors with these names that the folder's files contain."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("[!.]*.safetensors")):
        with safe_open(path, framework="pt") as file:
            wanted = set(names).intersection(file.keys())
            found |= {name: file.get_tensor(name) for name in wanted}
    if not found and (path := folder / "pytorch_model.bin").is_file():
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as err:  # the type depends on the file's content
            raise EngineStartError(f"cannot load the weights in {path}: {describe_error(err)}") from err
        found = {name: tensors[name] for name in names if name in tensors}
    return found
