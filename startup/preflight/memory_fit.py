"""Checks that the weights, the KV cache of one sequence and the program fit into memory."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from base.machine.memory import MemoryState
from base.wording import format_bytes
from server.config import EngineConfig
from startup.engine.torch_environment import expects_gpu
from startup.preflight.model_shape import ModelShape
from startup.preflight.report import Finding, Severity, error, warning

PROGRAM_BYTES: Final = 500 << 20
"""Anonymous memory of all processes with torch and transformers imported: 260 MB measured in the engine."""


def check_memory(shape: ModelShape, config: EngineConfig, memory: MemoryState | None) -> Iterator[Finding]:
    """Reports faults with their numbers and the flags that help."""
    if expects_gpu():  # it has its own memory, which the engine checks before it loads the model
        memory = None
    wanted, own = config.max_model_len, shape.own_max_len
    if wanted is not None and own is not None and wanted > own:
        most = _longest(own, shape, config, memory)
        yield error(
            "max_model_len",
            f"--max-model-len {wanted} is more than the model's own limit of {own} tokens (config.json): "
            f"give at most {most}" + ("" if most == own else ", for which there is room"),
        )
        config = replace(config, max_model_len=most)  # what else is wrong is reported as if this was given
    yield from _check_cache_size(shape, config)
    if memory is not None:
        yield from _check_fit(shape, config, memory)


def _longest(own: int, shape: ModelShape, config: EngineConfig, memory: MemoryState | None) -> int:
    """The longest sequence that there is room for; the model's own limit if there is room for none."""
    sizes = [config.kv_cache_memory_bytes, _room(shape, memory) if memory is not None else None]
    fitting = [size // shape.kv_bytes_per_token for size in sizes if size is not None and shape.kv_bytes_per_token]
    return min([own, *(number for number in fitting if number > 0)])


def _check_cache_size(shape: ModelShape, config: EngineConfig) -> Iterator[Finding]:
    size, wanted = config.kv_cache_memory_bytes, config.max_model_len
    if size is None or wanted is None or not shape.kv_bytes_per_token:
        return
    if size < (needed := wanted * shape.kv_bytes_per_token):
        yield error(
            "kv_cache",
            f"--kv-cache-memory-bytes {size} is too small for one sequence of --max-model-len {wanted}: give {needed} "
            f"or more, or lower --max-model-len to {size // shape.kv_bytes_per_token}",
        )


def _check_fit(shape: ModelShape, config: EngineConfig, memory: MemoryState) -> Iterator[Finding]:
    tokens = shape.sequence_tokens(config.max_model_len)
    kv_bytes = tokens * shape.kv_bytes_per_token
    fixed = shape.weight_bytes + PROGRAM_BYTES
    if fixed + kv_bytes <= memory.available_bytes:
        yield from _check_wanted_cache(fixed, config, memory)
        return
    severity: Severity = "error"
    if config.max_model_len is None and fixed + shape.kv_bytes_per_token <= memory.available_bytes:
        severity = "warning"
    yield Finding("memory", severity, _no_room(shape, config, memory))


def _check_wanted_cache(fixed: int, config: EngineConfig, memory: MemoryState) -> Iterator[Finding]:
    size = config.kv_cache_memory_bytes
    if size is not None and fixed + size > memory.available_bytes:
        most = max(memory.available_bytes - fixed, 0)
        yield warning(
            "kv_cache",
            f"--kv-cache-memory-bytes {size} is more than the {most} bytes that {_source(memory)} has left beside the "
            "weights: the engine may be killed under load; give less",
        )


def _no_room(shape: ModelShape, config: EngineConfig, memory: MemoryState) -> str:
    tokens = shape.sequence_tokens(config.max_model_len)
    kv_bytes = tokens * shape.kv_bytes_per_token
    parts = [f"{format_bytes(shape.weight_bytes)} for the weights in {shape.dtype}"]
    if kv_bytes:
        parts.append(f"{format_bytes(kv_bytes)} for the KV cache of one sequence of {tokens} tokens")
    parts.append(f"{format_bytes(PROGRAM_BYTES)} for the program")
    total = format_bytes(shape.weight_bytes + kv_bytes + PROGRAM_BYTES)
    available = f"{format_bytes(memory.available_bytes)} of {_source(memory)}'s {format_bytes(memory.total_bytes)}"
    return f"{total} are needed ({', '.join(parts)}), {available} are available: {_advice(shape, config, memory)}"


def _advice(shape: ModelShape, config: EngineConfig, memory: MemoryState) -> str:
    room = _room(shape, memory)
    steps = []
    if shape.kv_bytes_per_token and room >= shape.kv_bytes_per_token:
        most = room // shape.kv_bytes_per_token
        verb = "lower --max-model-len to" if config.max_model_len else "--max-model-len is lowered to"
        steps.append(f"{verb} at most {most}")
    elif shape.dtype in ("float32", "float"):
        steps.append("give --dtype bfloat16, which halves it")
    else:
        steps.append("take a smaller or quantized model")
    steps.append("raise the container's memory limit" if memory.is_cgroup else "free memory")
    return " or ".join(steps)


def _room(shape: ModelShape, memory: MemoryState) -> int:
    """Bytes for the KV cache."""
    return memory.available_bytes - shape.weight_bytes - PROGRAM_BYTES


def _source(memory: MemoryState) -> str:
    return "the container" if memory.is_cgroup else "the machine"
