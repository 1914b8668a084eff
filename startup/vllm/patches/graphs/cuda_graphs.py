"""Makes the capture of CUDA graphs cheaper: remembers the graphs' memory, and keeps the heap frozen.

vLLM captures the graphs once to measure their memory, subtracts it from the memory for the KV cache, and
captures them again. The measurement takes about half as long as the capture. The measured memory depends on
model, settings, GPU and driver. If these are the same as in an earlier start, the start skips the measurement
and uses the earlier result, if each rank has one. It hides the result until the graphs that it needs before
readiness are captured. Then, and once all are captured, it compares the memory that the graphs take with the
memory in the earlier start. If the two differ, or if the start has failed in between, the next start measures
again.

The forkserver has frozen its objects, so that a garbage collection in a fork visits none of them. vLLM
freezes the heap before each capture and unfreezes all objects afterwards. Each collection would then visit a
million objects, take a second, and copy the pages that forks share. So the hook turns off the unfreezing. At
the end of the start, vLLM itself freezes the heap for good. A compilation adds a million objects, and most of
them stay. So the hook turns off the collector during a compilation, and freezes all objects at its end.
"""

import gc
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, NamedTuple

from base.machine.nvml import read_gpus
from envs import environment
from startup.hook import Hook, Name, Text
from startup.imports.distributions import distribution_stamps
from startup.imports.finder import alters, place_variant, wraps
from startup.storage.caches import CachedValue
from startup.vllm.patches.ranks import WORLD, first_of_all_ranks

logger = logging.getLogger(__name__)

_MEASURE: Final = Name("vllm.v1.worker.gpu.cudagraph_utils", "profile_cudagraph_memory", ("runner",))
_CAPTURE: Final = Name("vllm.v1.worker.gpu.model_runner", "GPUModelRunner.capture_model", ())
_FINGERPRINT: Final = Name(
    "vllm.v1.worker.startup_plan", "compute_plan_fingerprint", ("vllm_config", "rank", "world_size")
)
GRAPH_MEMORY: Final = Hook(
    "CUDA graphs",
    does="remembers how much memory CUDA graphs need; excludes older objects from garbage collection",
    without="each start captures most graphs twice, to measure them",
    gain_in=("stand-in, compiled, later",),
    needs=(_MEASURE, _CAPTURE, _FINGERPRINT, WORLD),
    since=(0, 33),
    places={"forkserver", "template"},
)
_FREEZE: Final = Name("vllm.utils.gc_utils", "freeze_gc_for_cudagraph_capture", ())
FROZEN_HEAP: Final = GRAPH_MEMORY.part(
    _FREEZE,
    Text(_FREEZE.module, r"gc\.unfreeze\(\)\n +gc\.collect\(\)", "gc.unfreeze() after a capture"),
    since=(0, 32),
)
_COMPILE: Final = Name("vllm.compilation.wrapper", "TorchCompileWithNoGuardsWrapper.aot_compile")
FROZEN_COMPILER: Final = FROZEN_HEAP.part(_COMPILE, since=(0, 33))

FOLDER: Final = "graph-memory"
_LASTS_S: Final = 30 * 86400.0
_TOLERANCE: Final = 0.05
_SMALL_BYTES: Final = 16 << 20
_RELEVANT: Final = (
    "VLLM_",
    "PYTORCH_",
    "TORCH_",
    "TORCHINDUCTOR_",
    "TRITON_",
    "CUDA_",
    "CUBLAS_",
    "NCCL_",
    "RCCL_",
    "HIP_",
    "HSA_",
)
"""Prefixes of variables that may affect graphs, or the allocators of their memory."""
_ELSEWHERE: Final = ("VLLM_CPU_", "VLLM_LOG", "VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK", "VLLM_MEDIA_", "VLLM_HTTP_")
"""Prefixes of variables of vLLM that do not affect graphs, and that `bake` may lack."""
_NOT_RELEVANT: Final = ("_PORT", "_IP", "_KEY", "_ROOT", "_PATH", "_DIR", "_ID", "_NAME", "_VISIBLE_DEVICES")
"""Suffixes of variables that differ between starts or machines but do not affect graphs."""


class _Memory(NamedTuple):
    """Measurements of one start, in bytes."""

    estimate: int
    """The memory that vLLM measured before it sized the KV cache."""
    captured: int
    """The memory that all captured graphs have taken. 0 if the server ended before the last capture."""
    first: int = 0
    """The memory that the graphs captured before readiness have taken. 0 if all were captured then."""

    @classmethod
    def from_fields(cls, content: Any) -> "_Memory":
        return cls(int(content["estimate"]), int(content["captured"]), int(content.get("first", 0)))


class _State:
    """The measurements in this worker's start, and those of an earlier start."""

    cached: CachedValue | None = None
    estimate = 0
    known: _Memory | None = None
    """The measurements of an earlier start. None if this start measures the graphs itself."""
    is_late = False
    """Whether `compare` is called once all graphs are captured."""


@alters(FROZEN_HEAP, _FREEZE.module)
def _ignore_unfreezing(module: ModuleType) -> None:
    place_variant(module, "gc", unfreeze=lambda gc: None)


@wraps(FROZEN_COMPILER, _COMPILE)
def _collected_once(compile_now: Callable[..., Any]) -> Callable[..., Any]:
    def compile_and_freeze(self: Any, *args: Any, **kwargs: Any) -> Any:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return compile_now(self, *args, **kwargs)
        finally:
            gc.collect()
            gc.freeze()
            if was_enabled:
                gc.enable()

    return compile_and_freeze


@wraps(GRAPH_MEMORY, _MEASURE)
def _measured_once(measure: Callable[..., int]) -> Callable[..., int]:
    def measure_once(runner: Any) -> int:
        config = runner.vllm_config
        key = graph_key(config, config.parallel_config.rank)
        _State.cached = CachedValue(FOLDER, key, distribution_stamps(), _LASTS_S)
        _State.known = _State.cached.take(_Memory.from_fields)
        if first_of_all_ranks("" if _State.known is not None else "the memory is unknown"):
            _State.known = None
        if _State.known is not None:
            logger.debug("CUDA graphs need %d bytes, as in an earlier start", _State.known.estimate)
            return _State.known.estimate
        _State.estimate = measure(runner)
        return _State.estimate

    return measure_once


@wraps(GRAPH_MEMORY, _CAPTURE)
def _checked(capture: Callable[..., int]) -> Callable[..., int]:
    def capture_and_check(runner: Any, **options: Any) -> int:
        captured = capture(runner, **options)
        if not options.get("profile_only") and not _State.is_late:
            compare(captured)
        return captured

    return capture_and_check


def compare_later() -> None:
    """From now on, a capture is only a part of all. After the last one, call `compare` or `forget`."""
    _State.is_late = True


def compare_first(captured: int) -> int:
    """Keeps the measurements for later starts once the largest graphs are captured, unless these differ.

    The server may end before all graphs are captured. Returns the memory that all graphs took in an earlier
    start. 0 if it is not known.
    """
    if _State.cached is None:
        return 0
    known = _State.known or _Memory(_State.estimate, 0)
    if known.first and not _is_similar(captured, known.first):
        forget()
        return 0
    _State.known = known._replace(first=captured)
    _State.cached.write(_State.known._asdict())
    return known.captured


def compare(captured: int) -> None:
    """Keeps the memory that all graphs take for later starts, unless it differs from an earlier start's."""
    if _State.cached is None:
        return
    known = _State.known or _Memory(_State.estimate, 0)
    if known.captured and not _is_similar(captured, known.captured):
        forget()
        return
    _State.cached.write(known._replace(captured=known.captured or captured)._asdict())
    _State.cached = None


def _is_similar(num_bytes: int, expected: int) -> bool:
    return abs(num_bytes - expected) <= max(_SMALL_BYTES, _TOLERANCE * expected)


def forget() -> None:
    """Lets the next start measure the memory again, for example because a capture has failed."""
    if _State.cached is not None:
        _State.cached.hide()
    _State.cached = None


def graph_key(config: Any, rank: int) -> object:
    """All values on which a rank's graphs depend: vLLM's fingerprint, and values that are not in it."""
    state = read_gpus()
    graphs, scheduler, ranks = config.compilation_config, config.scheduler_config, config.parallel_config
    return (
        _FINGERPRINT.get()(config, rank, ranks.world_size),
        (ranks.data_parallel_index, ranks.disable_custom_all_reduce),
        state.driver if state is not None else "",
        (str(graphs.cudagraph_mode), graphs.cudagraph_capture_sizes, graphs.cudagraph_num_of_warmups),
        (scheduler.max_num_seqs, scheduler.max_num_batched_tokens),
        (repr(config.lora_config), repr(config.speculative_config), repr(config.cache_config.cache_dtype)),
        sorted(
            (name, value)
            for name, value in environment.snapshot().items()
            if name.startswith(_RELEVANT) and not name.startswith(_ELSEWHERE) and not name.endswith(_NOT_RELEVANT)
        ),
    )
