"""Reads the weights of one LoRA adapter from a PEFT folder, and checks that they fit the model."""

import math
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from base.json_depth import check_depth
from base.wording import list_some
from server.terms.config import LoraConfig
from server.text.model_files.model_kind import VISION_MODEL_TYPES

_SAFETENSORS: Final = "adapter_model.safetensors"
_TORCH_FILES: Final = ("adapter_model.bin", "adapter_model.pt")
_PREFIX: Final = "base_model.model."
_NAME: Final = re.compile(r"(?P<module>.+)\.lora_(?:embedding_)?(?P<part>[AB])(?:\.weight)?")
_MOST_NAMES: Final = 3
_DTYPES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16}
CONFIG_FILE: Final = "adapter_config.json"
_PLAIN_INITS: Final = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Values of `init_lora_weights` that leave the base model's weights unchanged. Other values change them."""


class LowRank(NamedTuple):
    """The update of one layer, `x @ down.T @ up`. An embedding's update is `down[ids] @ up`."""

    down: torch.Tensor
    """Shape [rank, inputs], or [vocabulary, rank] for an embedding."""
    up: torch.Tensor
    """Shape [rank, outputs]. The matrix is already multiplied by the adapter's scaling."""


class _LayerSize(NamedTuple):
    num_inputs: int
    num_outputs: int


def read_adapter(folder: Path, model: PreTrainedModel, limits: LoraConfig) -> dict[str, LowRank]:
    """Reads an adapter. Returns name -> update, for each module of the model that the adapter changes.

    Raises:
        AdapterMissingError: the folder or its configuration does not exist.
        AdapterError: the adapter is broken, belongs to another model, or uses an unsupported feature.
    """
    config = AdapterConfig.read(folder, limits)
    pairs = _pair(_read_tensors(folder), folder)
    found = {name: _find_module(model, name) for name in pairs}
    _check_modules(found, folder, model)
    updates: dict[str, LowRank] = {}
    for name, (a, b) in pairs.items():
        path = found[name]
        assert path is not None
        module = model.get_submodule(path)
        update = LowRank(a.T if isinstance(module, nn.Embedding) else a, b.T)
        _check_shapes(name, update, module, config.rank_of(name), folder)
        scaling = config.scaling_of(name)
        if (embed_scale := getattr(module, "embed_scale", None)) is not None:
            scaling *= float(embed_scale)
        updates[path] = LowRank(_place(update.down, model, limits), _place(update.up.float() * scaling, model, limits))
    return updates


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / _SAFETENSORS
    try:
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                # Copies, because the file is mapped and may be overwritten later.
                return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
        for path in (folder / name for name in _TORCH_FILES):
            if path.is_file():
                return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, EOFError) as err:
        raise AdapterError(f"{path} is broken: {' '.join(str(err).split())}") from err
    except Exception as err:
        raise AdapterError(f"{path} cannot be loaded: {type(err).__name__}") from err
    raise AdapterError(f"{folder} contains no {_SAFETENSORS}")


def _pair(tensors: dict[str, torch.Tensor], folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Pairs the matrices of each module. Skips base weights, which PEFT saves beside an adapted embedding."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    unknown: list[str] = []
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):  # as a file of torch may contain
            raise AdapterError(f"the weights in {folder} are not tensors by name")
        match = _NAME.fullmatch(name.removeprefix(_PREFIX))
        if match is not None:
            parts.setdefault(match["module"], {})[match["part"]] = tensor
        elif not name.endswith(".base_layer.weight"):
            unknown.append(name)
    incomplete = [module for module, both in parts.items() if len(both) != 2]
    if unknown or incomplete:
        raise AdapterError(
            f"the weights in {folder} are not those of a LoRA adapter: "
            f"{list_some(sorted(unknown + incomplete), _MOST_NAMES)}"
        )
    if not parts:
        raise AdapterError(f"the weights in {folder} are empty")
    return {module: (both["A"], both["B"]) for module, both in parts.items()}


def _find_module(model: PreTrainedModel, name: str) -> str | None:
    """Returns a module's path in the model. `name` lacks a prefix if the trained model had no head."""
    for path in (name, f"{model.base_model_prefix}.{name}"):
        try:
            model.get_submodule(path)
        except AttributeError:
            continue
        return path
    return None


def _check_modules(found: dict[str, str | None], folder: Path, model: PreTrainedModel) -> None:
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise AdapterError(
            f"the adapter in {folder} is not for {type(model).__name__}, which has no "
            f"{list_some(sorted(missing), _MOST_NAMES)}"
        )
    unsupported = [path for path in found.values() if path is not None and not _is_supported(model, path)]
    if unsupported:
        raise AdapterError(
            f"the adapter in {folder} changes modules of {type(model).__name__} that adapters cannot change here: "
            f"{list_some(sorted(unsupported), _MOST_NAMES)}"
        )


def _is_supported(model: PreTrainedModel, path: str) -> bool:
    """Whether a module is a linear layer or embedding that is not part of experts or of an image encoder."""
    module = model.get_submodule(path)
    if "experts" in path.split(".") or not isinstance(module, nn.Linear | nn.Embedding | Conv1D):
        return False
    if model.config.model_type not in VISION_MODEL_TYPES:
        return True
    names = path.split(".")
    return not isinstance(module, nn.Embedding) and (
        "language_model" in names or module is model.get_output_embeddings()
    )


def _check_shapes(name: str, update: LowRank, module: nn.Module, rank: int, folder: Path) -> None:
    size = _size_of(module)
    if isinstance(module, nn.Embedding):
        wanted = ([size.num_inputs, rank], [rank, size.num_outputs])
    else:
        wanted = ([rank, size.num_inputs], [rank, size.num_outputs])
    shapes = (list(update.down.shape), list(update.up.shape))
    if shapes != wanted:
        raise AdapterError(
            f"the adapter in {folder} does not fit the model: {name} has a rank of {rank}, {size.num_inputs} inputs "
            f"and {size.num_outputs} outputs, but the adapter's matrices are {shapes[0]} and {shapes[1]}"
        )


def _size_of(module: nn.Module) -> _LayerSize:
    if isinstance(module, nn.Linear):
        return _LayerSize(module.in_features, module.out_features)
    if isinstance(module, nn.Embedding):
        return _LayerSize(module.num_embeddings, module.embedding_dim)
    assert isinstance(module, Conv1D)
    return _LayerSize(*module.weight.shape)


def _place(tensor: torch.Tensor, model: PreTrainedModel, limits: LoraConfig) -> torch.Tensor:
    """Rounds the tensor to the adapters' type. Returns it in the model's type, on the model's device."""
    rounded = tensor.to(_DTYPES.get(limits.lora_dtype, model.dtype))
    return rounded.to(dtype=model.dtype, device=model.device).contiguous()


class AdapterError(Exception):
    """The adapter cannot be used. The message is for the user."""


class AdapterMissingError(AdapterError):
    """There is no adapter at the path."""


class AdapterConfig(msgspec.Struct, frozen=True):
    """The fields of a PEFT folder's adapter_config.json that matter for inference."""

    r: int
    lora_alpha: float
    target_modules: list[str] | str
    peft_type: str = "LORA"
    bias: str = "none"
    use_rslora: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    modules_to_save: list[str] | None = None
    use_dora: bool = False
    lora_bias: bool = False
    init_lora_weights: Any = True
    alora_invocation_tokens: Any = None
    layer_replication: Any = None
    use_bdlora: Any = None
    use_qalora: bool = False

    @classmethod
    def read(cls, folder: Path, limits: LoraConfig) -> "AdapterConfig":
        """Reads the file. Raises AdapterError if it is missing, broken, or not plain LoRA within `limits`."""
        try:
            content = (folder / CONFIG_FILE).read_bytes()
            check_depth(content)
            config = msgspec.json.decode(content, type=cls)
        except (FileNotFoundError, NotADirectoryError) as err:
            raise AdapterMissingError(f"there is no {CONFIG_FILE} in {folder}") from err
        except OSError as err:
            raise AdapterError(f"{folder / CONFIG_FILE} cannot be read: {err.strerror}") from err
        except ValueError as err:
            raise AdapterError(f"{folder / CONFIG_FILE} is not an adapter's configuration: {err}") from err
        faults = [*config._unsupported_features(), *config._wrong_ranks(limits.max_lora_rank)]
        if faults:
            raise AdapterError(f"{folder / CONFIG_FILE}: {'; '.join(faults)}")
        return config

    def rank_of(self, module: str) -> int:
        rank = _find_by_pattern(self.rank_pattern, module)
        return self.r if rank is None else int(rank)

    def scaling_of(self, module: str) -> float:
        """The factor by which a module's update is multiplied."""
        alpha = _find_by_pattern(self.alpha_pattern, module)
        rank = self.rank_of(module)
        return (self.lora_alpha if alpha is None else alpha) / (math.sqrt(rank) if self.use_rslora else rank)

    def _wrong_ranks(self, max_rank: int) -> list[str]:
        ranks = [self.r, *(self.rank_pattern or {}).values()]
        if min(ranks) < 1:
            return [f"the LoRA rank {min(ranks)} is not positive"]
        if max(ranks) > max_rank:
            return [f"LoRA rank {max(ranks)} is greater than max_lora_rank {max_rank} (--max-lora-rank)"]
        return []

    def _unsupported_features(self) -> list[str]:
        init = self.init_lora_weights
        changes_base = isinstance(init, str) and init.lower() not in _PLAIN_INITS
        features = {
            f"peft_type is {self.peft_type!r}, only LORA is supported": self.peft_type != "LORA",
            "vllm-cli does not yet support DoRA (use_dora)": self.use_dora,
            f"bias is {self.bias!r}, only 'none' is supported": self.bias != "none",
            "a bias of the update is not supported (lora_bias)": self.lora_bias,
            f"Unsupported modules_to_save: {self.modules_to_save}": self.modules_to_save,
            f"init_lora_weights={init!r} changes the base model's weights. Convert the adapter with PEFT's "
            "path_initial_model_for_weight_conversion": changes_base,
            "Activated LoRA is not supported (alora_invocation_tokens)": self.alora_invocation_tokens,
            "layer_replication is not supported": self.layer_replication,
            "block-diagonal LoRA is not supported (use_bdlora)": self.use_bdlora,
            "QALoRA is not supported (use_qalora)": self.use_qalora,
        }
        return [message for message, is_used in features.items() if is_used]


def _find_by_pattern(patterns: dict[str, Any] | None, module: str) -> float | None:
    """The value of the first pattern that matches the whole name, or its end after a dot, as in PEFT."""
    for pattern, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return float(value)
        except re.error as err:
            raise AdapterError(f"{CONFIG_FILE}: {pattern!r} is not a regular expression: {err}") from err
    return None
