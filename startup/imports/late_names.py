"""Delays imports whose names the importing module uses only in calls and annotations.

Every process of vLLM imports aiohttp for downloads and OpenTelemetry's exporters for traces, and the engine
imports the API server's protocols because one of its modules compares a class. In these modules a stand-in
takes the name's place. Its first use imports the real module and puts the real object into the module. No
other module sees a stand-in.
"""

import builtins
import functools
import importlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec, resolve_name
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from startup.hooks.left_out import applies
from startup.hooks.of_vllm import LATE_NAMES


class LateImport(NamedTuple):
    """An import statement whose names are not used while its module is imported."""

    importer: str
    module: str
    requires: str | None = None
    """For a statement in a `try`: a package without which it is executed, and raises ImportError."""
    is_for_engine: bool = False
    """Not in the API server, which needs the module, and whose schemas depend on the order of imports."""


_OTEL: Final = "vllm.tracing.otel"
_EXPORTER: Final = "opentelemetry.exporter.otlp.proto"

LATE_IMPORTS: Final = (
    LateImport("vllm.connections", "aiohttp"),
    LateImport("vllm.connections", "requests"),
    LateImport("vllm.entrypoints.launchers.api_server.entry", "vllm.entrypoints.launchers.api_server.app_state"),
    LateImport("vllm.entrypoints.launchers.api_server.entry", "vllm.entrypoints.launchers.app"),
    LateImport("vllm.distributed.device_communicators.pynccl_allocator", "torch.utils.cpp_extension"),
    LateImport("vllm.multimodal.media.connector", "aiohttp"),
    LateImport("vllm.multimodal.media.connector", "requests"),
    LateImport("vllm.reasoning.abs_reasoning_parsers", "vllm.entrypoints.mcp.tool_server", is_for_engine=True),
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

API_SERVER: Final = tuple(entry for entry in LATE_IMPORTS if not entry.is_for_engine)


@contextmanager
def late_imports(late: Iterable[LateImport]) -> Iterator[None]:
    """While open, these import statements give stand-ins, unless their module is loaded already."""
    if not applies(LATE_NAMES):
        yield
        return
    requirements = {(entry.importer, entry.module): entry.requires for entry in late}
    import_now = builtins.__import__

    @functools.wraps(import_now)
    def import_late(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        importer = globals.get("__name__") if globals else None
        wanted = resolve_name("." * level + name, globals["__package__"]) if level and importer else name
        key = (importer, wanted)
        if key not in requirements or wanted in sys.modules or not _is_installed(requirements[key]):
            return import_now(name, globals, locals, fromlist, level)
        if not fromlist:
            return LateName(wanted, None, globals)
        return SimpleNamespace(**{name: LateName(wanted, name, globals) for name in fromlist})

    builtins.__import__ = import_late
    try:
        yield
    finally:
        builtins.__import__ = import_now


class LateName:
    """Stands for a module or one of its objects; any use of it imports the module.

    An instance check needs no import: a module that is not loaded has no instances. A union with it is an
    annotation of a function, which is not evaluated further.
    """

    def __init__(self, module: str, name: str | None, importer: dict[str, Any]) -> None:
        self.__late = (module, name, importer)

    def real(self) -> Any:
        """The object that it stands for, which takes its place in the importing module."""
        module, name, importer = self.__late
        value: Any = importlib.import_module(module)
        if name is not None:
            value = getattr(value, name)
        for key in [key for key, current in importer.items() if current is self]:
            importer[key] = value
        return value

    def __getattr__(self, name: str) -> Any:
        module, own_name, importer = self.__late
        if own_name is None and importer["__spec__"]._initializing:  # an annotation in the importing module
            return LateName(module, name, importer)
        return getattr(self.real(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.real()(*args, **kwargs)

    def __instancecheck__(self, instance: object) -> bool:
        return self.__late[0] in sys.modules and isinstance(instance, self.real())

    def __subclasscheck__(self, subclass: type) -> bool:
        return self.__late[0] in sys.modules and issubclass(subclass, self.real())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.real(),)

    def __reduce__(self) -> Any:
        module, name, _ = self.__late
        return _real_object, (module, name)

    def __or__(self, other: Any) -> Any:
        return Any

    __ror__ = __or__


def _real_object(module: str, name: str | None) -> Any:
    imported = importlib.import_module(module)
    return imported if name is None else getattr(imported, name)


def _is_installed(package: str | None) -> bool:
    try:
        return package is None or find_spec(package) is not None
    except ImportError:
        return False
