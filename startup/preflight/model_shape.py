"""Computes a model's memory needs from config.json and the headers of its weights."""

from typing import Any, Final, NamedTuple

from server.config import EngineConfig
from server.model_files.kind import read_model_kind
from startup.preflight.checkpoint import Checkpoint

LENGTH_KEYS: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "n_ctx",
)
_DEFAULT_LENGTH: Final = 2048
_ITEM_BYTES: Final = {"float64": 8, "float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
_CONVERTED: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types in the checkpoint that are converted to the configured type; quantized weights are not converted."""


class ModelShape(NamedTuple):
    """A model's sizes in bytes and tokens."""

    dtype: str
    weight_bytes: int
    """Bytes of the weights in memory, after conversion."""
    kv_bytes_per_token: int
    """Keys and values of all layers; 0 if config.json lacks them, and for a model without a KV cache."""
    own_max_len: int | None
    """The longest sequence that the model supports; None if config.json does not give it."""

    def sequence_tokens(self, wanted: int | None) -> int:
        """The longest sequence that would be served."""
        return wanted or self.own_max_len or _DEFAULT_LENGTH


def loaded_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """Bytes of the weights in memory after conversion; `auto` is the checkpoint's own type."""
    own = dtype if dtype != "auto" else _own_dtype(checkpoint, _text_config(checkpoint.config))
    return _weight_bytes(checkpoint, _ITEM_BYTES.get(own, 2))


def read_model_shape(checkpoint: Checkpoint, config: EngineConfig) -> ModelShape:
    """The sizes for the checks of memory; weights and KV cache depend on `config.dtype`."""
    text = _text_config({**checkpoint.config, **config.hf_overrides})
    dtype = config.dtype if config.dtype != "auto" else _own_dtype(checkpoint, text)
    item_bytes = _ITEM_BYTES.get(dtype, 2)
    is_pooling = read_model_kind(checkpoint.folder, config).is_pooling
    lengths = [length for key in LENGTH_KEYS if (length := _count(text, key))]
    return ModelShape(
        dtype=dtype,
        weight_bytes=_weight_bytes(checkpoint, item_bytes),
        kv_bytes_per_token=0 if is_pooling else _kv_elements(text) * item_bytes,
        own_max_len=min(lengths, default=None),
    )


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the language model's part of a multimodal model merged in."""
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def _own_dtype(checkpoint: Checkpoint, text: dict[str, Any]) -> str:
    declared = text.get("dtype") or text.get("torch_dtype")
    if declared in _ITEM_BYTES:
        return str(declared)
    sizes: dict[str, int] = {}
    for tensor in checkpoint.tensors:
        if name := _CONVERTED.get(tensor.dtype):
            sizes[name] = sizes.get(name, 0) + tensor.num_bytes
    return max(sizes, key=lambda name: sizes[name], default="float32")


def _weight_bytes(checkpoint: Checkpoint, item_bytes: int) -> int:
    if not checkpoint.tensors:
        return checkpoint.weight_bytes
    return sum(
        tensor.num_elements * item_bytes if tensor.dtype in _CONVERTED else tensor.num_bytes
        for tensor in checkpoint.tensors
    )


def _kv_elements(text: dict[str, Any]) -> int:
    """Number of elements in the keys and values of one token in all layers."""
    num_layers = _count(text, "num_hidden_layers", "n_layer", "num_layers")
    num_heads = _count(text, "num_attention_heads", "n_head", "num_heads")
    hidden_size = _count(text, "hidden_size", "n_embd", "d_model")
    num_kv_heads = _count(text, "num_key_value_heads") or num_heads
    head_dim = _count(text, "head_dim") or (hidden_size // num_heads if num_heads else 0)
    return 2 * num_layers * num_kv_heads * head_dim


def _count(text: dict[str, Any], *keys: str) -> int:
    """The first positive number under these keys; 0 if there is none."""
    return next((text[key] for key in keys if isinstance(text.get(key), int) and text[key] > 0), 0)
