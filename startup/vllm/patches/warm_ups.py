"""Leaves out steps of vLLM's warm-up that do nothing for this model, and delays those for rare requests.

Each of these steps imports a compiler or a library of kernels before vLLM is ready.
"""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from startup.hook import Hook, Name, Text
from startup.imports.finder import after_import, before_import, replaced, wraps
from startup.vllm.patches.engine_idle import add_idle_work, does_idle_work
from startup.vllm.patches.ranks import WORLD, first_of_all_ranks

_KERNELS: Final = "vllm.model_executor.warmup.kernel_warmup"
_MONITOR: Final = "vllm.utils.jit_monitor"
_WATCHED: Final = {"_setup_tilelang_jit_hook": "tilelang.jit", "_setup_cutedsl_jit_hook": "cutlass.cute"}
"""Functions of vLLM's JIT monitor -> the module that they import and change."""
_WATCHERS: Final = tuple(Name(_MONITOR, name, ()) for name in _WATCHED)
WARM_UPS: Final = Hook(
    "unused warm-ups",
    does="watches TileLang and CuTe DSL once they are imported; imports no cutlass to compile, skips warm-ups of "
    "kernels that the model lacks, and prepares Inductor for later compilations when idle",
    without="starts that compile import TileLang, and all starts import FlashInfer's autotuner, for no kernel",
    gain_in=("stand-in, compiled, later",),
    needs=_WATCHERS,
    since=(0, 33),
    places={"forkserver", "template"},
)

_WARM_ROUTER: Final = Name(_KERNELS, "_warmup_ll_bf16_router_gemm", ("model",))
_ROUTER_SHAPES: Final = Name(_KERNELS, "_ll_bf16_router_shapes_from_model", ("model",))
ROUTERS: Final = WARM_UPS.part(_WARM_ROUTER, _ROUTER_SHAPES, since=(0, 33))

_FIND_STEP5: Final = Name("vllm.model_executor.warmup.step5_dsa_warmup", "_step5_dsa_impl", ("worker",))
_STEP5_LAYERS: Final = "vllm.models.step5.nvidia.sparse_attention"
STEP5: Final = WARM_UPS.part(
    _FIND_STEP5,
    Text(
        _FIND_STEP5.module, rf"from {re.escape(_STEP5_LAYERS)} import .*?isinstance\(", "a search for layers of Step5"
    ),
    since=(0, 33),
)

_TUNE: Final = Name(_KERNELS, "flashinfer_autotune", ("runner",))
_TOKEN_COUNTS: Final = Name(_KERNELS, "_flashinfer_autotune_token_counts", ("runner",))
_TUNER: Final = "flashinfer.autotuner.autotuner"
_KIMI_GEMMS: Final = "vllm.models.kimi_k3.nvidia.low_latency_gemm"
AUTOTUNER: Final = WARM_UPS.part(
    _TUNE,
    _TOKEN_COUNTS,
    WORLD,
    Text(
        _KERNELS,
        r"\n            if not cache_hit:\n"
        r"                _run_flashinfer_autotune_dummy_runs\(runner, skip_attn=skip_attn\)\n"
        r"            replayssm_autotune_warmup\(runner\)\n"
        r"            _autotune_kimi_k3_kda_qkvg\(runner\.get_model\(\)\)\n    finally:",
        "the known steps of the autotuner",
    ),
    Text(_TUNER, r"\n    _instance = None\n.*?if cls\._instance is None:", "AutoTuner._instance"),
    since=(0, 33),
)

_WARM_UP: Final = Name("vllm.v1.worker.gpu_worker", "Worker.compile_or_warm_up_model", ())
_PREPARE_INDUCTOR: Final = Name("vllm.compilation.compiler_interface", "trigger_inductor_lazy_init", ("device",))
_SYNC_CHECK: Final = Name("vllm.envs", "VLLM_GPU_SYNC_CHECK")
INDUCTOR: Final = WARM_UPS.part(_WARM_UP, _PREPARE_INDUCTOR, _SYNC_CHECK, since=(0, 33))

_PICKLING: Final = "torch._inductor.codegen.nv_universal_gemm.nv_universal_gemm_utils"
_CUTLASS: Final = "cutlass"
_CONSTRAINTS: Final = f"{_CUTLASS}.operators.metadata"
_REGISTER: Final = Name(_PICKLING, "_register_scaled_operand_constraints_pickling", ())
_REGISTERS: Final = re.compile(
    rf"def {_REGISTER.path}\(\).*?\n    try:\n        from {re.escape(_CONSTRAINTS)} import \w+\n"
    r"    except ImportError:\n        return\n",
    re.DOTALL,
)
"""Torch 2.14 registers how pickle copies a class of cutlass, which Inductor uses for FP4 and FP8 only."""


@wraps(WARM_UPS, *_WATCHERS)
def _watch_once_imported(watch: Callable[[], None]) -> Callable[[], None]:
    """The monitor reports what a compiler compiles. A compiler that nobody has imported compiles nothing."""
    compiler = _WATCHED[watch.__name__]

    def watch_once_imported() -> None:
        after_import(compiler, lambda _: watch())

    return watch_once_imported


@wraps(ROUTERS, _WARM_ROUTER)
def _skip_without_routers(warm: Callable[..., Any]) -> Callable[..., Any]:
    """The warm-up of a kernel for routers of experts imports cutlass, also for models without routers."""

    def warm_routers(model: Any) -> None:
        if _ROUTER_SHAPES.get()(model):
            warm(model)

    return warm_routers


@wraps(STEP5, _FIND_STEP5)
def _skip_without_step5(find: Callable[..., Any]) -> Callable[..., Any]:
    """The search for Step5's layers imports its models, and with these further ones."""

    def find_loaded(worker: Any) -> Any:
        return find(worker) if _STEP5_LAYERS in sys.modules else None

    return find_loaded


@wraps(AUTOTUNER, _TUNE)
def _tune_if_used(tune: Callable[..., None]) -> Callable[..., None]:
    """Each kernel of FlashInfer that can be tuned asks for the tuner. vLLM's batches for it always run."""

    def tune_if_used(runner: Any, *, skip_attn: bool = False) -> None:
        if skip_attn or _tunes_more(runner.vllm_config) or first_of_all_ranks(_why_tuned()):
            tune(runner, skip_attn=skip_attn)
            return
        _run_batches(runner)
        if first_of_all_ranks(_why_tuned()):
            tune(runner)

    return tune_if_used


def _run_batches(runner: Any) -> None:
    """Runs the batches during which vLLM tunes. They also make other kernels ready."""
    import torch  # noqa: PLC0415 - vLLM has imported it

    with torch.inference_mode():
        for num_tokens in _TOKEN_COUNTS.get()(runner):
            runner._dummy_run(num_tokens=num_tokens, skip_eplb=True, is_profile=True, randomize_inputs=True)


def _why_tuned() -> str:
    """Why this rank needs the tuner. Empty if no kernel of it has asked for the tuner yet."""
    tuner = sys.modules.get(_TUNER)
    return "a kernel can be tuned" if tuner is not None and tuner.AutoTuner._instance is not None else ""


def _tunes_more(config: Any) -> bool:
    """Whether vLLM's function tunes kernels that `_run_batches` does not run."""
    has_hisparse = getattr(config.attention_config, "hisparse_config", None) is not None
    return has_hisparse or bool(getattr(config.cache_config, "use_replayssm", False)) or _KIMI_GEMMS in sys.modules


@wraps(INDUCTOR, _WARM_UP)
def _prepare_inductor_later(warm_up: Callable[..., Any]) -> Callable[..., Any]:
    """A start that has loaded its compiled model compiles nothing, unless a request needs a new function."""

    def prepare_later(device: Any = None) -> None:
        add_idle_work(lambda: _PREPARE_INDUCTOR.get()(device))

    def warm_up_and_prepare_later(worker: Any) -> Any:
        if _SYNC_CHECK.get() is not None or not does_idle_work(worker.vllm_config):
            return warm_up(worker)
        with replaced(_PREPARE_INDUCTOR, lambda prepare: prepare_later):
            return warm_up(worker)

    return warm_up_and_prepare_later


def _register_once_imported() -> None:
    """The registration imports cutlass (1.6 s) when Inductor compiles. Nothing unloaded is pickled."""

    def hide(module: ModuleType) -> None:
        source = Path(getattr(module.__spec__, "origin", None) or os.devnull).read_text(encoding="utf-8")
        if _CUTLASS not in sys.modules and _REGISTERS.search(source):
            sys.modules[_CUTLASS] = None  # type: ignore[assignment] # an import then raises ImportError

    def show(module: ModuleType) -> None:
        if sys.modules.get(_CUTLASS, module) is None:
            del sys.modules[_CUTLASS]
            after_import(_CONSTRAINTS, lambda _: _REGISTER.get(module)())

    before_import(_PICKLING, hide)
    after_import(_PICKLING, show)


WARM_UPS.changes.append(_register_once_imported)
