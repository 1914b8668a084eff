"""The import statements of vLLM whose names few requests use: they are delayed until a name is used."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from startup.hooks.hook import Hook, Text
from startup.imports.late_names import LateImport, late_names

LATE_NAMES: Final = Hook(
    "late imports",
    does="delays imports whose names are used only in calls and annotations (`startup.vllm.patches.late_imports`)",
    without="every process imports what few requests use",
    needs=(
        Text(("vllm.connections",), r"^import aiohttp\b", "import aiohttp"),
        Text(
            ("vllm.v1.structured_output",), r"^from vllm\.v1\.structured_output\.backend_xgrammar import", "an import"
        ),
    ),
)

_OTEL: Final = "vllm.tracing.otel"
_EXPORTER: Final = "opentelemetry.exporter.otlp.proto"

_EVERYWHERE: Final = (
    LateImport("vllm.connections", "aiohttp"),
    LateImport("vllm.connections", "requests"),
    LateImport("vllm.entrypoints.launchers.api_server.entry", "vllm.entrypoints.launchers.api_server.app_state"),
    LateImport("vllm.entrypoints.launchers.api_server.entry", "vllm.entrypoints.launchers.app"),
    LateImport("vllm.distributed.device_communicators.pynccl_allocator", "torch.utils.cpp_extension"),
    LateImport("vllm.multimodal.media.connector", "aiohttp"),
    LateImport("vllm.multimodal.media.connector", "requests"),
    LateImport("vllm.transformers_utils.config", "transformers.models.auto.image_processing_auto"),
    LateImport("vllm.usage.usage_lib", "cpuinfo"),
    LateImport("vllm.v1.structured_output", "vllm.parser.engine.adapters"),
    LateImport("vllm.v1.structured_output", "vllm.v1.structured_output.backend_guidance"),
    LateImport("vllm.v1.structured_output", "vllm.v1.structured_output.backend_xgrammar"),
    LateImport("vllm.v1.worker.gpu.eplb_utils", "vllm.models.deepseek_v4.common.eplb_util"),
    LateImport(_OTEL, f"{_EXPORTER}.grpc.trace_exporter", requires=f"{_EXPORTER}.grpc"),
    LateImport(_OTEL, f"{_EXPORTER}.http.trace_exporter", requires=f"{_EXPORTER}.http"),
    LateImport(_OTEL, "opentelemetry.sdk.trace", requires="opentelemetry.sdk"),
    LateImport(_OTEL, "opentelemetry.sdk.trace.export", requires="opentelemetry.sdk"),
)
"""As in vLLM 0.28 to 0.32; a statement that a version does not have has no effect."""

_IN_ENGINES: Final = (LateImport("vllm.reasoning.abs_reasoning_parsers", "vllm.entrypoints.mcp.tool_server"),)
"""Not in the API server, which needs the module, and whose schemas depend on the order of imports."""


@contextmanager
def late_imports(*, in_engine: bool = False) -> Iterator[None]:
    """While open, these import statements give stand-ins, unless their module is loaded already."""
    if not LATE_NAMES.applies:
        yield
        return
    with late_names((*_EVERYWHERE, *(_IN_ENGINES if in_engine else ()))):
        yield
