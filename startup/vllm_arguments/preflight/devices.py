"""Checks the GPUs that vLLM will use (number, memory, driver), or the memory for a vLLM on CPU.

Also finds out, before vLLM starts, whether a model can sleep (release GPU memory), and at which level.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from base.machine.memory import MemoryState, read_memory
from base.machine.nvml import Gpu, GpuState, read_gpus
from base.wording import format_bytes, list_some
from envs import foreign
from startup.hook import Text
from startup.session.preflight.memory_fit import check_asked, check_asked_of_gpus
from startup.session.preflight.network import describe_process
from startup.session.preflight.report import Finding, error, info, unchecked, warning
from startup.vllm_arguments.flags import flags_that_change
from startup.vllm_arguments.installed import find_vllm, read_torch_build
from startup.vllm_arguments.preflight.arguments import GivenStart
from startup.vllm_arguments.preflight.model import ModelOnDisk
from startup.vllm_arguments.vllm_line import VllmLine
from startup.vllm_arguments.vllm_record import default_utilization, read_record

_TEGRA: Final = (Path("/etc/nv_tegra_release"), Path("/sys/class/tegra-firmware"))
"""Files of NVIDIA's Tegra boards, on which CUDA works without NVML."""
_COMPATIBILITY: Final = Path("/usr/local/cuda/compat")
_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_AMD: Final = (Path("/dev/kfd"), Path("/dev/dxg"))
"""Devices of AMD's driver on Linux, and in Windows' subsystem for Linux."""
_GIB: Final = 1 << 30
_IDS: Final = "--device-ids"
_KV_BYTES: Final = "--kv-cache-memory-bytes"
_GPUS: Final = ("cuda", "rocm", "xpu")
"""The devices that have sleep mode in vLLM 0.29 to 0.33 (`is_sleep_mode_available`), and other features."""
_OF_HOST: Final = (
    ("--cpu-offload-gb", _GIB, True),
    ("--kv-offloading-size", _GIB, False),
    ("--mm-processor-cache-gb", _GIB, False),
    ("--safetensors-prefetch-block-size", 1, False),
)
"""A flag that asks for memory of the machine, the bytes of its unit, and whether each GPU gets it."""
_SHARE_IS_CHECKED: Final = Text("vllm.v1.worker.cpu_worker", "desired CPU memory utilization", "the share of memory")
"""Whether vLLM for CPUs refuses to start if a share of the memory is not available."""
_ONLY_ON: Final = (
    ("--enable-sleep-mode", None, _GPUS),
    ("--enable-cumem-allocator", None, _GPUS),
    ("--enable-eplb", None, _GPUS),
    ("--enable-mamba-cache-stochastic-rounding", None, ("cuda",)),
    ("--kda-prefill-backend", "flashkda", ("cuda",)),
    ("--kda-prefill-backend", "fused", ("rocm",)),
)
"""A flag, its value if not every value counts, and the devices on which vLLM's configuration accepts it."""


def device_findings(start: GivenStart, model: ModelOnDisk) -> Iterator[Finding]:
    """Checks the devices that this vLLM was built for, unless a plugin provides another platform."""
    if start.record.has_other_platform:
        yield unchecked("device", "a plugin provides the platform: its devices and their memory are not checked")
        return
    device = start.vllm.device
    for flag, value, accepting in _ONLY_ON if device != "other" and start.is_known else ():
        if device not in accepting and (start.has(flag) if value is None else start.value(flag) == value):
            given = flag if value is None else f"{flag} {value}"
            wanted = ", ".join(accepting)
            yield error("device", f"{given} needs vLLM for {wanted}, and this vLLM is built for {device}: leave it out")
    if device == "cuda":
        yield from _gpu_findings(start, model)
    elif device == "rocm" and not any(path.exists() for path in _AMD):
        yield error("gpu", f"this vLLM is built for ROCm, and there is no AMD GPU here ({_AMD[0]} is missing)")
    elif device != "cpu":
        name = "the device of this vLLM is not known" if device == "other" else f"this vLLM is for {device}"
        yield unchecked("device", f"{name}: number, driver and memory of its devices are not checked")
    else:
        yield from _memory_findings(start, read_memory(), model)
    yield from _host_findings(start)


def _gpu_findings(start: GivenStart, model: ModelOnDisk) -> Iterator[Finding]:
    if any(path.exists() for path in _TEGRA):
        yield unchecked("gpu", "this is a Tegra board, whose driver does not report the GPU and its memory")
        return
    state = read_gpus()
    if state is None:
        yield error(
            "gpu",
            "this vLLM is built for CUDA, and there is no NVIDIA driver here (no libnvidia-ml.so.1): start the "
            "container with --gpus all, or install a vLLM for CPUs",
        )
        return
    if state.problem or not state.gpus:
        reason = state.problem or "the driver reports no GPU"
        yield error("gpu", f"no GPU can be used: {reason}. Check `nvidia-smi`, or give --engine embedded")
        return
    yield from _driver_findings(state)
    yield from _id_findings(start, len(state.gpus))
    visible = _visible(state.gpus, start)
    if visible is None:
        chosen = _IDS if start.has(_IDS) else f"{_VISIBLE}={foreign.text_of(_VISIBLE)}"
        yield unchecked("gpu", f"{chosen} chooses the GPUs: whether they are enough, and their memory, is not checked")
        return
    yield from _number_findings(start, visible)
    if visible:
        yield from _gpu_memory_findings(start, visible, model)


def _driver_findings(state: GpuState) -> Iterator[Finding]:
    build = read_torch_build()
    if build is None or build.cuda is None or state.cuda == (0, 0):
        yield unchecked("driver", "the CUDA of driver or torch is not known, so whether they fit is not checked")
        return
    if state.cuda[0] >= build.cuda[0]:
        return
    supported, needed = ".".join(map(str, state.cuda)), ".".join(map(str, build.cuda))
    report = warning if _has_compatibility() else error
    yield report(
        "driver",
        f"the driver {state.driver} supports CUDA {supported}, and torch is built for CUDA {needed}: upgrade the "
        "driver, or install a vLLM for that CUDA",
    )


def _has_compatibility() -> bool:
    """Whether CUDA's compatibility libraries, which make an older driver work, may be installed."""
    paths = foreign.text_of("LD_LIBRARY_PATH")
    return _COMPATIBILITY.exists() or "compat" in paths or foreign.is_set("VLLM_ENABLE_CUDA_COMPATIBILITY")


def _visible(gpus: tuple[Gpu, ...], start: GivenStart) -> list[Gpu] | None:
    """The GPUs that vLLM may use. None if a flag or an unknown name in CUDA_VISIBLE_DEVICES selects them."""
    if start.has(_IDS):
        return None
    if not foreign.is_set(_VISIBLE):
        return list(gpus)
    found: list[Gpu] = []
    for name in foreign.text_of(_VISIBLE).split(","):
        gpu = next((gpu for gpu in gpus if name.strip() in (str(gpu.number), gpu.uuid)), None)
        if gpu is None:
            return None if name.strip().startswith(("GPU-", "MIG-")) else found
        found.append(gpu)
    return found


def _id_findings(start: GivenStart, num_gpus: int) -> Iterator[Finding]:
    """Checks the numbers of GPUs. They count within CUDA_VISIBLE_DEVICES, if it is set."""
    ids = (start.line.value(_IDS) or "").split(",")
    if not all(each.strip().isdigit() for each in ids) or start.value("--distributed-executor-backend") == "ray":
        return
    names = foreign.text_of(_VISIBLE)
    where, num = (f"{_VISIBLE}={names}", len(names.split(","))) if names else ("this machine", num_gpus)
    if missing := [each.strip() for each in ids if int(each) >= num]:
        last = f"0 to {num - 1}" if num > 1 else "only 0"
        yield error("gpu", f"{_IDS}: {where} has no GPU {', '.join(missing)}: take {last}")
    elif len(set(map(int, ids))) < len(ids):
        yield error("gpu", f"{_IDS} {','.join(ids)} names a GPU twice")


def _number_findings(start: GivenStart, visible: list[Gpu]) -> Iterator[Finding]:
    if not visible:
        yield error("gpu", f"{_VISIBLE}={foreign.text_of(_VISIBLE)} hides all GPUs from vLLM: unset it")
        return
    needed = _gpus_needed(start)
    if needed is None or needed <= len(visible):
        return
    yield error(
        "gpu",
        f"{_sizes(start)} need {needed} GPUs on this node, and {len(visible)} can be used: lower them, or give "
        "--distributed-executor-backend ray or --nnodes for several nodes",
    )


def _gpus_needed(start: GivenStart) -> int | None:
    """How many GPUs of this node the model's replicas need. None if GPUs of other nodes may be used."""
    backend = start.value("--distributed-executor-backend")
    spread = ("--nnodes", "--master-addr", "--data-parallel-address", "--headless", "--data-parallel-rank")
    if backend not in (None, "mp", "uni") or start.has(*spread) or start.value("--data-parallel-backend") == "ray":
        return None
    per_replica = start.number("--tensor-parallel-size", 1) * start.number("--pipeline-parallel-size", 1)
    per_replica *= start.number("--prefill-context-parallel-size", 1)
    replicas = start.number("--data-parallel-size-local", start.number("--data-parallel-size", 1))
    return per_replica * max(replicas, 1)


def _sizes(start: GivenStart) -> str:
    flags = ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size")
    given = [f"{flag} {start.value(flag)}" for flag in flags if start.value(flag)]
    return " and ".join(given) or "the parallel sizes"


def _gpu_memory_findings(start: GivenStart, visible: list[Gpu], model: ModelOnDisk) -> Iterator[Finding]:
    """Reports GPUs with less free memory than the share that vLLM needs when it starts."""
    given = start.value("--gpu-memory-utilization")
    utilization = given if isinstance(given, float) else default_utilization(start.record)
    needed = _gpus_needed(start) or 1
    cache_bytes = start.value(_KV_BYTES)
    if isinstance(cache_bytes, int) and not start.has("--num-gpu-blocks-override"):
        yield from check_asked_of_gpus(f"{_KV_BYTES} {cache_bytes}", cache_bytes, visible[:needed])
    for gpu in visible[:needed]:
        wanted = utilization * gpu.total_bytes
        if gpu.free_bytes >= wanted:
            continue
        holders = _describe_holders(gpu) or "processes that are not visible here hold the rest"
        share = max(int(gpu.free_bytes / gpu.total_bytes * 100) / 100 - 0.01, 0.01)
        yield warning(
            "gpu_memory",
            f"GPU {gpu.number} ({gpu.name}) has {format_bytes(gpu.free_bytes)} of {format_bytes(gpu.total_bytes)} "
            f"free, --gpu-memory-utilization {utilization:g} needs {format_bytes(wanted)}: {holders}. End them, "
            f"or give {share:.2f}",
        )
    yield from _weight_findings(start, visible[:needed], model)


def _describe_holders(gpu: Gpu) -> str:
    holders = sorted(gpu.processes, key=lambda process: -(process.used_bytes or 0))
    texts = [
        describe_process(process.pid)
        + (f" holds {format_bytes(process.used_bytes)}" if process.used_bytes is not None else "")
        for process in holders
    ]
    return list_some(texts, 3) if texts else ""


def _weight_findings(start: GivenStart, gpus: list[Gpu], model: ModelOnDisk) -> Iterator[Finding]:
    """Reports weights that cannot fit into the GPUs. Memory for other purposes cannot be computed here."""
    if start.has("--cpu-offload-gb", "--offload-backend", "--quantization") or start.load_format == "dummy":
        return
    checkpoint = model.checkpoint
    if checkpoint is None or not checkpoint.weight_bytes or not gpus:
        return
    shards = start.number("--tensor-parallel-size", 1) * start.number("--pipeline-parallel-size", 1)
    each, free = checkpoint.weight_bytes / shards, min(gpu.free_bytes for gpu in gpus)
    need = f"the weights need {format_bytes(each)} of each GPU, and {format_bytes(free)} are free"
    if each > free:
        remedy = "give a larger --tensor-parallel-size, or take a smaller or quantized model"
        yield warning("gpu_memory", f"{need}: {remedy}")
    else:
        yield info("gpu_memory", need)


def _memory_findings(start: GivenStart, memory: MemoryState | None, model: ModelOnDisk) -> Iterator[Finding]:
    """Checks that the KV cache on a CPU fits into memory, because vLLM allocates it at once."""
    if memory is None:
        yield unchecked("memory", "the machine does not report its memory, so whether the model fits is not checked")
    elif model.checkpoint is not None:
        free = f"{format_bytes(memory.available_bytes)} of {memory.owner}'s memory are available"
        yield info("memory", f"the weights need {format_bytes(model.checkpoint.weight_bytes)}, and {free}")
    if memory is None:
        return
    size, name = start.value(_KV_BYTES), f"{_KV_BYTES} {start.value(_KV_BYTES)}"
    space = foreign.text_of("VLLM_CPU_KVCACHE_SPACE")
    if space.isdigit():
        size, name = int(space) * _GIB, f"VLLM_CPU_KVCACHE_SPACE={space}"
    if isinstance(size, int):
        yield from check_asked(name, size, memory)
    elif _SHARE_IS_CHECKED.is_found():
        given = start.value("--gpu-memory-utilization")
        share = given if isinstance(given, float) else default_utilization(start.record)
        wanted = share * memory.total_bytes
        if wanted > memory.available_bytes:
            fitting = max(int(memory.available_bytes / memory.total_bytes * 100) / 100 - 0.05, 0.05)
            yield warning(
                "memory",
                f"--gpu-memory-utilization {share:g}, which is of the machine's memory here, needs "
                f"{format_bytes(int(wanted))}, and {format_bytes(memory.available_bytes)} are available: free memory, "
                f"or give {fitting:.2f}",
            )


def _host_findings(start: GivenStart) -> Iterator[Finding]:
    """Compares the memory of the machine with what flags ask for beside model and KV cache."""
    memory = read_memory()
    if memory is None:
        return
    for flag, bytes_each, per_rank in _OF_HOST:
        asked = start.value(flag)
        if not isinstance(asked, int | float) or not 0 < asked < math.inf:
            continue
        ranks = (_gpus_needed(start) or 1) if per_rank else 1
        whole = f"{flag} {asked:g} for each of {ranks} GPUs" if ranks > 1 else f"{flag} {asked:g}"
        for finding in check_asked(whole, asked * bytes_each * ranks, memory):
            yield finding._replace(severity="warning")  # vLLM itself does not compare them


_RELOADED: Final = ("auto", "hf", "safetensors")
"""Values of --load-format with which `reload_weights` can read the weights again."""
_NOT_RELOADED: Final = (
    "--quantization",
    "--kv-cache-dtype",
    "--calculate-kv-scales",
    "--speculative-config",
    "--enable-lora",
    "--cpu-offload-gb",
    "--offload-backend",
    "--hf-overrides",
    "--runner",
    "--convert",
    "--task",
    "--model-impl",
)
"""With these flags, the GPU holds more than the checkpoint's weights, or holds them in another form."""
_PLAIN: Final = ("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3")
"""Model types that have only parameters and buffers on the GPU. vLLM reloads parameters and keeps buffers.

Other model types would lose further tensors: slopes of ALiBi, products of MLA, maps and workspaces of
experts.
"""
_OTHER: Final = ("quantization_config", "compression_config", "auto_map")
"""A model whose config.json has one of these keys is not plain."""


def can_sleep(variables: Mapping[str, str]) -> str:
    """Why a model of the installed vLLM cannot sleep with these environment variables. Empty if it can."""
    vllm = find_vllm()
    if vllm is None:
        return "vLLM is not installed"
    device = "cpu" if variables.get("VLLM_TARGET_DEVICE", "").lower() == "cpu" else vllm.device
    if device not in _GPUS or read_record(vllm).has_other_platform:
        return f"this vLLM, for {device}, has no sleep mode, or a plugin decides about it"
    if variables.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        return "vLLM's Rust frontend does not pass the router's arguments on to the engine"
    return ""


def deepest_level(arguments: Sequence[str]) -> int:
    """The deepest level of sleep from which the model wakes unchanged. 0 if sleep mode must stay off.

    `arguments` follow `vllm serve`. Level 2 drops the weights, and vLLM's `reload_weights` reads them again.
    This restores a plain text model completely.
    """
    vllm, line = find_vllm(), VllmLine.of(arguments)
    if line.has(*flags_that_change("elsewhere"), "--kv-transfer-config") and not line.has("--enable-sleep-mode"):
        return 0
    if vllm is None or line.has(*_NOT_RELOADED) or line.request.load_format not in _RELOADED:
        return 1
    config = ModelOnDisk(GivenStart(vllm, line)).config
    return 2 if _is_plain(config) else 1


def _is_plain(config: Mapping[str, Any]) -> bool:
    architectures = [str(name) for name in config.get("architectures") or ()]
    is_for_text = len(architectures) == 1 and architectures[0].endswith("ForCausalLM")
    return is_for_text and config.get("model_type") in _PLAIN and not any(map(config.get, _OTHER))
