"""Checks whether weights, one sequence's KV cache and the program fit into memory.

The sizes of weights and KV cache come from config.json and the headers of the weights' files.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from base.machine.memory import MemoryState
from base.machine.nvml import Gpu, read_gpus
from base.wording import format_bytes
from envs.registry import env
from server.terms.config import EngineConfig
from server.text.model_files import read_model_kind
from startup.imports.torch_environment import expects_gpu
from startup.session.preflight.checkpoint import LENGTH_KEYS, Checkpoint
from startup.session.preflight.report import Finding, error, info, unchecked, warning

PROGRAM_BYTES: Final = 500 << 20
"""Memory of all processes after their imports of torch and transformers. The engine's share was 260 MB."""
_MOST_BYTES: Final = 1 << 60
_DEFAULT_LENGTH: Final = 2048
_ITEM_BYTES: Final = {"float64": 8, "float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
_CONVERTED: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types of the checkpoint that are converted to the configured type. Quantized weights are not converted."""


class ModelShape(NamedTuple):
    """A model's sizes in bytes and tokens."""

    dtype: str
    weight_bytes: int
    """Size of the weights in memory, after conversion."""
    kv_bytes_per_token: int
    """Size of one token's keys and values in all layers. 0 if it is unknown or the model has no KV cache."""
    own_max_len: int | None
    """The model's own limit for a sequence, in tokens. None if config.json does not give it."""


def loaded_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """Size of the weights in memory after conversion. `auto` stands for the checkpoint's own type."""
    text = _text_config(checkpoint.config)
    own = dtype if dtype != "auto" else _own_dtype(checkpoint, text)
    return _weight_bytes(checkpoint, _ITEM_BYTES.get(own, 2))


def read_model_shape(checkpoint: Checkpoint, config: EngineConfig) -> ModelShape:
    """The sizes for the memory checks. Sizes of weights and KV cache depend on `config.dtype`."""
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
    """The configuration. If the model is multimodal, its language model's settings are merged into it."""
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
    """Number of elements of one token's keys and values, in all layers."""
    num_layers = _count(text, "num_hidden_layers", "n_layer", "num_layers")
    num_heads = _count(text, "num_attention_heads", "n_head", "num_heads")
    hidden_size = _count(text, "hidden_size", "n_embd", "d_model")
    num_kv_heads = _count(text, "num_key_value_heads") or num_heads
    head_dim = _count(text, "head_dim") or (hidden_size // num_heads if num_heads else 0)
    return 2 * num_layers * num_kv_heads * head_dim


def _count(text: dict[str, Any], *keys: str) -> int:
    """The first positive number among the values of these keys. 0 if there is no such number."""
    for key in keys:
        value = text.get(key)
        if type(value) is int and value > 0:
            return value
    return 0


def check_asked(what: str, num_bytes: float, memory: MemoryState, check: str = "memory") -> Iterator[Finding]:
    """Compares the memory that a flag asks for with what there is. `what`: the flag, such as `--x 4`.

    More than a container has is only a warning, because it is not known how much the container may swap.
    """
    asked = format_bytes(int(min(num_bytes, _MOST_BYTES)))
    if num_bytes > memory.total_bytes:
        text = f"{what} asks for {asked}, and {memory.owner} has {format_bytes(memory.total_bytes)}: give less"
        yield (warning if memory.is_cgroup else error)(check, text)
    elif num_bytes > memory.available_bytes:
        free = format_bytes(memory.available_bytes)
        yield warning(check, f"{what} asks for {asked}, and {free} of {memory.owner}'s memory are available: give less")


def check_asked_of_gpus(what: str, num_bytes: int, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """The same for the memory of each of these GPUs."""
    least = min((gpu.total_bytes for gpu in gpus), default=0)
    free = min((gpu.free_bytes for gpu in gpus), default=0)
    if num_bytes > least > 0:
        text = f"{what} asks for {format_bytes(num_bytes)} of each GPU, and a GPU has {format_bytes(least)}: give less"
        yield error("gpu_memory", text)
    elif num_bytes > free:
        text = f"{what} asks for {format_bytes(num_bytes)} of each GPU, and {format_bytes(free)} are free: give less"
        yield warning("gpu_memory", text)


def check_cache_size(config: EngineConfig, memory: MemoryState | None) -> Iterator[Finding]:
    """Compares the given size of the KV cache with the memory of the GPUs, or else of the machine."""
    size = config.kv_cache_memory_bytes
    if size is None:
        return
    what = f"--kv-cache-memory-bytes {size}"
    if not expects_gpu():
        yield from check_asked(what, size, memory, "kv_cache") if memory is not None else ()
    elif (state := read_gpus()) is not None and state.gpus:
        largest = max(state.gpus, key=lambda gpu: gpu.total_bytes)  # it is not known which one is used
        yield from check_asked_of_gpus(what, size, (largest,))


def check_memory(shape: ModelShape, config: EngineConfig, memory: MemoryState | None) -> Iterator[Finding]:
    """Reports memory faults, with their numbers and the flags that help."""
    if expects_gpu():  # a GPU has its own memory, which the engine checks before it loads the model
        yield unchecked("memory", "whether the model fits into the GPU's memory is checked by the engine")
        memory = None
    elif memory is None:
        yield unchecked("memory", "the machine does not report its memory, so whether the model fits is not checked")
    room = None if memory is None else memory.available_bytes - shape.weight_bytes - PROGRAM_BYTES
    wanted, size = config.max_model_len, config.kv_cache_memory_bytes
    own, per_token = shape.own_max_len, shape.kv_bytes_per_token
    if wanted is not None and own is not None and wanted > own and not config.allow_long_max_model_len:
        fitting = [each // per_token for each in (size, room) if each is not None and per_token]
        most = min([own, *(number for number in fitting if number > 0)])
        yield error(
            "max_model_len",
            f"--max-model-len {wanted} is more than the model's own limit of {own} tokens (config.json): "
            f"give at most {most}"
            + ("" if most == own else ", for which there is room")
            + f". With {env.VLLM_ALLOW_LONG_MAX_MODEL_LEN.name}=1, a model with RoPE takes more",
        )
        wanted = most  # other faults are reported as if this had been given
    if size is not None and wanted is not None and size < (needed := wanted * per_token):
        yield error(
            "kv_cache",
            f"--kv-cache-memory-bytes {size} is too small for one sequence of --max-model-len {wanted}: give {needed} "
            f"or more, or lower --max-model-len to {size // per_token}",
        )
    if memory is not None and room is not None:
        yield from _check_fit(shape, wanted, size, memory, room)


def _check_fit(
    shape: ModelShape, wanted: int | None, size: int | None, memory: MemoryState, room: int
) -> Iterator[Finding]:
    """Compares the KV cache of one sequence, or of the given size, with the bytes that are left for it."""
    tokens = wanted or shape.own_max_len or _DEFAULT_LENGTH
    need = _describe_need(shape, tokens, memory)
    if tokens * shape.kv_bytes_per_token <= room:
        yield info("memory", need)
        if size is not None and room < size <= memory.available_bytes:  # otherwise `check_cache_size` reports it
            yield warning(
                "kv_cache",
                f"--kv-cache-memory-bytes {size} asks for {format_bytes(size)}, and {memory.owner} has "
                f"{format_bytes(max(room, 0))} left beside the weights: the engine may be killed under load. Give less",
            )
        return
    if shape.kv_bytes_per_token and room >= shape.kv_bytes_per_token:
        verb = "lower --max-model-len to" if wanted else "--max-model-len is lowered to"
        step = f"{verb} at most {room // shape.kv_bytes_per_token}"
    elif shape.dtype in ("float32", "float"):
        step = "give --dtype bfloat16, which halves it"
    else:
        step = "take a smaller or quantized model"
    more = "raise the container's memory limit" if memory.is_cgroup else "free memory"
    report = warning if wanted is None and shape.kv_bytes_per_token <= room else error
    yield report("memory", f"{need}: {step} or {more}")


def _describe_need(shape: ModelShape, tokens: int, memory: MemoryState) -> str:
    kv_bytes = tokens * shape.kv_bytes_per_token
    parts = [f"{format_bytes(shape.weight_bytes)} for the weights in {shape.dtype}"]
    if kv_bytes:
        parts.append(f"{format_bytes(kv_bytes)} for the KV cache of one sequence of {tokens} tokens")
    parts.append(f"{format_bytes(PROGRAM_BYTES)} for the program")
    total = format_bytes(shape.weight_bytes + kv_bytes + PROGRAM_BYTES)
    available = f"{format_bytes(memory.available_bytes)} of {memory.owner}'s {format_bytes(memory.total_bytes)}"
    return f"{total} are needed ({', '.join(parts)}), {available} are available"
