"""Lists the features with which vLLM captures all CUDA graphs before it is ready (docs/dev/vllm-hooks.md).

`--cuda-graphs auto` captures late only what a stored run on a GPU has shown, and `after-ready` whatever
`OF_CONFIG` and `OF_RUNNER` allow.

All ranks must come to the same result, or some would wait for others. So no feature depends on free memory.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple

from envs.registry import env
from startup.hook import Name
from startup.vllm.patches.graphs.cuda_graphs import FROZEN_HEAP
from startup.vllm.patches.graphs.graph_proof import BASE, read_proof
from startup.vllm_arguments.installed import find_vllm

ENVS: Final = Name("vllm.envs", "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS")
PLATFORM: Final = Name("vllm.platforms", "current_platform")
ESTIMATE: Final = "vcli_graph_bytes"
"""The attribute of a model runner with vLLM's estimate of the graphs' memory."""
_BACKENDS: Final = ("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN")
_UNTRIED: Final = "not tried"
_NO_ROOM: Final = "no room for the graphs is taken off before the KV cache is sized"
_STATE: Final = "a capture runs batches, whose effect on this state is not proven"
_HALF: Final = ("torch.bfloat16", "torch.float16")


class Feature(NamedTuple):
    """A feature, why it excludes late graphs, and whether a configuration or a model runner has it."""

    name: str
    why: str
    applies: Callable[[Any], object]


class Unproven(NamedTuple):
    """A feature that excludes late graphs from `auto` until a run on a GPU is stored (`graph_proof`)."""

    name: str
    run: str
    """The feature in the stored run, and in tests/cuda/test_late_graphs_on_gpus.py."""
    needs: str
    """The GPUs that the run needs."""
    applies: Callable[[Any], object]


def _any(*paths: str) -> Callable[[Any], bool]:
    return lambda config: any(attrgetter(path)(config) for path in paths)


def _more_than_one(*paths: str) -> Callable[[Any], bool]:
    return lambda config: any(attrgetter(path)(config) > 1 for path in paths)


def _has_unmeasured_memory(config: Any) -> bool:
    envs: Any = ENVS.loaded
    is_measured = envs.VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS and not envs.VLLM_ENABLE_STARTUP_PLAN
    return not is_measured or config.cache_config.kv_cache_memory_bytes is not None


def _has_other_backend(runner: Any) -> object:
    return {group.backend.get_name() for groups in runner.attn_groups for group in groups}.difference(_BACKENDS)


def _wraps_each_size(runner: Any) -> bool:
    """Whether FlashInfer keeps memory for each number of decodes, also for batches without a graph."""
    groups = [group for groups in runner.attn_groups for group in groups if group.backend.get_name() == "FLASHINFER"]
    builders = [group.get_metadata_builder() for group in groups]
    return not all(getattr(builder, "use_trtllm_decode_attention", False) for builder in builders)


def _has_inner_graphs(runner: Any) -> bool:
    capture = getattr(type(getattr(runner, "model_state", None)), "capture_inner_cudagraphs", None)
    return capture is not None and not capture.__qualname__.startswith("ModelState.")


OF_CONFIG: Final = (
    Feature("`--cuda-graphs before-ready`", "asked for", lambda _: env.VCLI_CUDA_GRAPHS.get() == "before-ready"),
    Feature("other GPUs than NVIDIA's", _UNTRIED, lambda _: not PLATFORM.get().is_cuda()),
    Feature("`--kv-cache-memory-bytes`, a plan of the start, no estimate", _NO_ROOM, _has_unmeasured_memory),
    Feature("speculative decoding", "the drafter's graphs read the model's", _any("speculative_config")),
    Feature("LoRA", "a capture activates dummy adapters", _any("lora_config")),
    Feature(
        "data parallelism of MoE models",
        "all engines would have to capture between the same two steps",
        _more_than_one("parallel_config.data_parallel_size"),
    ),
    Feature(
        "elastic or balanced experts",
        "vLLM drops graphs when it moves experts",
        _any("parallel_config.enable_elastic_ep", "parallel_config.enable_eplb"),
    ),
    Feature("microbatches", _UNTRIED, _any("parallel_config.use_ubatching")),
    Feature(
        "context parallelism",
        _UNTRIED,
        _more_than_one("parallel_config.prefill_context_parallel_size", "parallel_config.decode_context_parallel_size"),
    ),
    Feature("several nodes", "their workers may lack this hook", _more_than_one("parallel_config.nnodes")),
    Feature(
        "Ray, other executors",
        "their workers lack this hook",
        lambda config: config.parallel_config.distributed_executor_backend not in ("uni", "mp", None),
    ),
    Feature("fault tolerance", _UNTRIED, _any("parallel_config.enable_fault_tolerance")),
    Feature(
        "transfer of KV caches, encoder outputs or weights",
        "a capture forbids other threads to use the GPU",
        _any("kv_transfer_config", "ec_transfer_config", "weight_transfer_config"),
    ),
    Feature(
        "offloaded weights",
        "weights are copied beside the steps",
        _any("offload_config.uva.cpu_offload_gb", "offload_config.prefetch.offload_group_size"),
    ),
    Feature(
        "models for images or other media",
        _UNTRIED,
        _any("model_config.is_multimodal_model", "compilation_config.cudagraph_mm_encoder"),
    ),
    Feature("pooling models", _UNTRIED, lambda config: config.model_config.runner_type != "generate"),
    Feature("encoder-decoder models", _UNTRIED, _any("model_config.is_encoder_decoder")),
    Feature("Mamba layers or other states", _STATE, _any("model_config.is_hybrid", "model_config.is_attention_free")),
    Feature(
        "Inductor's graph partitions",
        "a capture reuses the memory of earlier graphs",
        _any("compilation_config.use_inductor_graph_partition"),
    ),
    Feature(
        "NCCL's symmetric memory",
        "each capture would register windows on all ranks",
        lambda _: ENVS.loaded.VLLM_USE_NCCL_SYMM_MEM,  # type: ignore[union-attr]
    ),
    Feature(
        "without the hook `CUDA graphs`",
        "each capture would collect all garbage of the process",
        lambda _: not FROZEN_HEAP.applies,
    ),
    Feature("breakable graphs", _UNTRIED, lambda _: attrgetter("VLLM_USE_BREAKABLE_CUDAGRAPH")(ENVS.loaded)),
    Feature("`--sleep-mode-offload-cudagraph`", _UNTRIED, _any("use_cumem_cudagraph_pool")),
    Feature("fast prefill", _STATE, _any("cache_config.kv_sharing_fast_prefill")),
    Feature(
        "an error for each late compilation",
        "a capture may compile kernels",
        lambda config: config.observability_config.jit_monitor_mode == "error",
    ),
    Feature("a profiler", "it observes the captures", _any("profiler_config.profiler")),
)
OF_RUNNER: Final = (
    Feature("no estimate of the graphs' memory", _NO_ROOM, lambda runner: not hasattr(runner, ESTIMATE)),
    Feature("graphs inside of a model", "vLLM captures them after all others", _has_inner_graphs),
    Feature(f"attention backends except {', '.join(_BACKENDS)}", _UNTRIED, _has_other_backend),
    Feature(
        "FLASHINFER without TRTLLM's decode",
        "batches without a graph would take memory for each size",
        _wraps_each_size,
    ),
)
UNPROVEN: Final = (
    Unproven(
        "several ranks", "several ranks", "two GPUs", lambda runner: runner.vllm_config.parallel_config.world_size > 1
    ),
    Unproven(
        "MoE models",
        "a mixture of experts",
        "any GPU, empty Triton cache",
        lambda runner: runner.vllm_config.model_config.is_moe,
    ),
    Unproven(
        "quantized weights or KV caches, or other types than bfloat16 and float16",
        "quantized weights",
        "any GPU with FP8",
        lambda runner: _is_quantized(runner.vllm_config),
    ),
    Unproven(
        "attention backend FLASHINFER", "FlashInfer", "SM 10.0", lambda runner: _has_backend(runner, "FLASHINFER")
    ),
    Unproven("attention backend TRITON_ATTN", "Triton", "any GPU", lambda runner: _has_backend(runner, "TRITON_ATTN")),
    Unproven(
        "the older model runner", "the older runner", "any GPU", lambda runner: not hasattr(runner, "cudagraph_manager")
    ),
    Unproven(
        "sleep mode", "sleep in the middle", "any GPU", lambda runner: runner.vllm_config.model_config.enable_sleep_mode
    ),
    Unproven("batch-invariant mode", "batch invariance", "SM 9.0", lambda _: ENVS.loaded.VLLM_BATCH_INVARIANT),  # type: ignore[union-attr]
)


def why_config(config: Any) -> str | None:
    """The feature of this configuration that excludes late graphs. None if there is none."""
    return _first(OF_CONFIG, config)


def why_runner(runner: Any) -> str | None:
    """The feature of this model runner that excludes late graphs. None if there is none."""
    excluded = why_config(runner.vllm_config) or _first(OF_RUNNER, runner)
    if excluded is not None or env.VCLI_CUDA_GRAPHS.get() != "auto":
        return excluded
    device = PLATFORM.get().get_device_capability()
    vllm = find_vllm()
    proof = read_proof(f"{device[0]}.{device[1]}" if device else "", vllm.version if vllm else "")
    if not proof.shows(BASE):
        return "no run of this code on such a GPU is stored"
    return _first(tuple(feature for feature in UNPROVEN if not proof.shows(feature.run)), runner)


def _has_backend(runner: Any, name: str) -> bool:
    return any(group.backend.get_name() == name for groups in runner.attn_groups for group in groups)


def _is_quantized(config: Any) -> bool:
    model = config.model_config
    is_kv_cache_plain = config.cache_config.cache_dtype in ("auto", "bfloat16", "float16")
    return bool(model.quantization) or str(model.dtype) not in _HALF or not is_kv_cache_plain


def _first(features: Sequence[Feature | Unproven], owner: Any) -> str | None:
    try:
        return next((feature.name for feature in features if feature.applies(owner)), None)
    except AttributeError as err:  # another version of vLLM
        return str(err)
