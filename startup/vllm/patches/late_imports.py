"""Delays vLLM's imports of names that few requests need, until such a name is used."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from startup.hook import Hook, Text
from startup.imports.distributions import import_later
from startup.imports.heavy import importing
from startup.imports.late_names import LateImport, is_installed, late_names
from startup.imports.late_packages import make_late
from startup.imports.stand_ins import StandIns
from startup.vllm.patches.engine_idle import in_all_processes, when_idle

LATE_NAMES: Final = Hook(
    "unused imports",
    does="delays imports of modules, and of names used only in calls or annotations; omits other subcommands",
    without="processes import what few requests use",
    gain_in=("CPU, eager, later", "stand-in, compiled, later"),
    needs=(
        Text("vllm.connections", r"^import aiohttp\b", "import aiohttp"),
        Text("vllm.v1.structured_output", r"^from vllm\.v1\.structured_output\.backend_xgrammar import", "an import"),
    ),
)
FLASHINFER: Final = LATE_NAMES.part(
    Text("flashinfer._build_meta", r'^__version__ = "0\.7\.2', "version 0.7.2"), since=(0, 33)
)
UNUSED_COMMANDS: Final = LATE_NAMES.part(Text("vllm.entrypoints.cli.main", r"\.cmd_init\(", "cmd_init()"))

_OTEL: Final = "vllm.tracing.otel"
_EXPORTER: Final = "opentelemetry.exporter.otlp.proto"
_HUMMING: Final = "vllm.model_executor.layers.quantization.utils.humming"
_EVERYWHERE: Final = (
    LateImport("torchvision", "torchvision.datasets"),
    LateImport("torchvision", "torchvision.models"),
    LateImport("transformers.distributed.checkpoint", "torch.distributed.checkpoint.hf_storage"),
    LateImport("vllm.connections", "aiohttp"),
    LateImport("vllm.connections", "requests"),
    LateImport("vllm.entrypoints.launchers.api_server.entry", "vllm.entrypoints.launchers.api_server.app_state"),
    LateImport("vllm.entrypoints.launchers.api_server.entry", "vllm.entrypoints.launchers.app"),
    LateImport("vllm.distributed.device_communicators.pynccl_allocator", "torch.utils.cpp_extension"),
    LateImport("vllm.multimodal.media.connector", "aiohttp"),
    LateImport("vllm.multimodal.media.connector", "requests"),
    LateImport("vllm.model_executor.warmup.minimax_m3_msa_warmup", "vllm.models.minimax_m3.nvidia.model"),
    LateImport("vllm.transformers_utils.config", "transformers.models.auto.image_processing_auto"),
    LateImport("vllm.usage.usage_lib", "cpuinfo"),
    *(
        LateImport("vllm.v1.attention.backends.flashinfer", f"flashinfer{part}")
        for part in ("", ".decode", ".prefill", ".utils")
    ),
    LateImport("vllm.v1.structured_output", "vllm.parser.engine.adapters"),
    LateImport("vllm.v1.structured_output", "vllm.v1.structured_output.backend_guidance"),
    LateImport("vllm.v1.structured_output", "vllm.v1.structured_output.backend_xgrammar"),
    LateImport("vllm.v1.worker.gpu.eplb_utils", "vllm.models.deepseek_v4.common.eplb_util"),
    LateImport(_OTEL, f"{_EXPORTER}.grpc.trace_exporter", requires=f"{_EXPORTER}.grpc"),
    LateImport(_OTEL, f"{_EXPORTER}.http.trace_exporter", requires=f"{_EXPORTER}.http"),
    LateImport(_OTEL, "opentelemetry.sdk.trace", requires="opentelemetry.sdk"),
    LateImport(_OTEL, "opentelemetry.sdk.trace.export", requires="opentelemetry.sdk"),
    *(
        LateImport(f"vllm.model_executor.kernels.linear.{weights}.humming", _HUMMING)
        for weights in ("mixed_precision", "mxfp4", "mxfp6", "mxfp8", "nvfp4", "scaled_mm")
    ),
)
"""Import statements in vLLM 0.29 to 0.33. If a version lacks a statement, the entry has no effect."""

_LATE_PACKAGES: Final[Mapping[str, Collection[str]]] = {
    "torch._inductor": ("torch._inductor.config", "torch._inductor.custom_graph_pass"),
    _HUMMING: (),
    **dict.fromkeys(("openai.types", "openai.types.chat", "openai.types.responses", "openai.types.shared"), ()),
}
"""Packages whose own code imports names of their modules -> modules that do without it. Empty: each does."""

_LIGHT_FLASHINFER: Final = tuple(
    f"flashinfer.{name}"
    for name in (
        "_build_meta",
        "api_logging",
        "artifacts",
        "autotune_cache",
        "autotuner.",
        "comm.",
        "compilation_context",
        "cuda_utils",
        "fi_trace",
        "fused_moe",
        "fused_moe.utils",
        "jit.",
        "sampling",
        "tactics_blocklist",
        "tllm_enums",
        "tllm_utils",
        "trace.",
        "utils",
        "version",
    )
)
"""What the autotuner, sampling and communication between GPUs import."""
_LATE_FLASHINFER: Final[Mapping[str, Collection[str]]] = {
    **dict.fromkeys(("flashinfer", "flashinfer.fused_moe"), _LIGHT_FLASHINFER),
    "flashinfer.comm": (),
}
_IN_FLASHINFER: Final = (
    LateImport("flashinfer.comm.trtllm_mnnvl_ar", "flashinfer.fp4_quantization"),
    LateImport("vllm.compilation.passes.fusion.rms_quant_fusion", "flashinfer", requires="flashinfer"),
)
"""Statements that are delayed only with FlashInfer's known version."""
_INTRINSICS: Final = "b12x._lib.intrinsics"
"""An alias of a module of FlashInfer that imports cutlass. vLLM imports it and keeps it for later."""

_IN_ENGINES: Final = (LateImport("vllm.reasoning.abs_reasoning_parsers", "vllm.entrypoints.mcp.tool_server"),)
"""Statements that are delayed only in engines. The API server's schemas depend on the order of imports."""


@contextmanager
def late_imports(*, in_engine: bool = False) -> Iterator[None]:
    """Inside this context, vLLM's imports of rarely used modules and names are delayed until their use.

    Late packages stay late in this process and its forks, which import some of them when the model is loaded.
    """
    if not LATE_NAMES.applies:
        yield
        return
    make_late(_LATE_PACKAGES)
    is_known = FLASHINFER.applies and is_installed("cutlass")
    make_late(_LATE_FLASHINFER if is_known else {}, is_known=True)
    stand_in = StandIns([_INTRINSICS] if is_known else [], become_real=True)
    stand_in.install()
    try:
        of_flashinfer = _IN_FLASHINFER if is_known else ()
        with late_names((*_EVERYWHERE, *of_flashinfer, *(_IN_ENGINES if in_engine else ()))):
            yield
    finally:
        stand_in.remove()


@when_idle(LATE_NAMES)
def _prepare_grammars(engine: Any) -> None:
    """Imports what the first request with a schema or a grammar needs."""
    in_all_processes(engine, _import_grammars)
    with suppress(Exception):  # a request that needs it gets the error
        getattr(engine.structured_output_manager, "tokenizer", None)


def _import_grammars(_: Any = None) -> None:
    with suppress(Exception), importing():
        import_later("vllm.v1.structured_output.backend_xgrammar")
