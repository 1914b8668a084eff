"""Delays vLLM's imports of names that few requests need, until such a name is used."""

import builtins
import functools
import importlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec, resolve_name
from types import ModuleType, SimpleNamespace
from typing import Any, Final, NamedTuple

from startup.hook import Hook, Text
from startup.imports.distributions import import_later, note_package
from startup.imports.finder import before_import, cancel

LATE_NAMES: Final = Hook(
    "unused imports",
    does="delays imports of names used only in calls and annotations; leaves out vLLM's other subcommands",
    without="every process imports what few requests use",
    gain="0.89 (0.86–0.99) of a cold start; the subcommands 0.82 (0.79–0.94)",
    needs=(
        Text(("vllm.connections",), r"^import aiohttp\b", "import aiohttp"),
        Text(
            ("vllm.v1.structured_output",), r"^from vllm\.v1\.structured_output\.backend_xgrammar import", "an import"
        ),
    ),
)
UNUSED_COMMANDS: Final = LATE_NAMES.part(Text(("vllm.entrypoints.cli.main",), r"\.cmd_init\(", "cmd_init()"))


class LateImport(NamedTuple):
    """An import statement of the module `importer`, which uses the names only after its own import."""

    importer: str
    module: str
    requires: str | None = None
    """A package that a statement in a `try` needs. Without it, the statement runs and raises ImportError."""


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
    LateImport("vllm.model_executor.warmup.minimax_m3_msa_warmup", "vllm.models.minimax_m3.nvidia.model"),
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
"""Import statements in vLLM 0.29 to 0.33. If a version lacks a statement, the entry has no effect."""

_IN_ENGINES: Final = (LateImport("vllm.reasoning.abs_reasoning_parsers", "vllm.entrypoints.mcp.tool_server"),)
"""Statements that are delayed only in engines. The API server's schemas depend on the order of imports."""


@contextmanager
def late_imports(*, in_engine: bool = False) -> Iterator[None]:
    """Inside this context, vLLM's imports of rarely used names return stand-ins for unloaded modules."""
    if not LATE_NAMES.applies:
        yield
        return
    with late_names((*_EVERYWHERE, *(_IN_ENGINES if in_engine else ()))):
        yield


@contextmanager
def late_names(late: Iterable[LateImport]) -> Iterator[None]:
    """Inside this context, the import statements in `late` return stand-ins for unloaded modules."""
    statements: dict[str, dict[str, str | None]] = defaultdict(dict)
    for entry in late:
        statements[entry.importer][entry.module] = entry.requires
    actions = [(name, functools.partial(_delay_imports, modules)) for name, modules in statements.items()]
    for name, action in actions:
        before_import(name, action)
    try:
        yield
    finally:
        for name, action in actions:
            cancel(name, action)


def _delay_imports(late: Mapping[str, str | None], importer: ModuleType) -> None:
    """Gives the module `importer` an `__import__` that returns stand-ins while the module's code is run.

    When Python begins to run code, it takes the built-in names, such as `__import__`, from the module's
    `__builtins__`. Functions that the module's code defines get the usual built-in names.
    """
    namespace = vars(importer)

    def import_late(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        namespace["__builtins__"] = vars(builtins)  # for functions that are defined from now on
        wanted = resolve_name("." * level + name, namespace["__package__"]) if level else name
        if wanted not in late or wanted in sys.modules or not _is_installed(late[wanted]):
            return builtins.__import__(name, globals, locals, fromlist, level)
        if not fromlist:
            return LateName(wanted, None, namespace)
        return SimpleNamespace(**{name: LateName(wanted, name, namespace) for name in fromlist})

    namespace["__builtins__"] = {**vars(builtins), "__import__": import_late}


class LateName:
    """Stands for a module or for one of its objects. Using a LateName imports the module.

    Only an instance check does not, because classes of a module that is not loaded have no instances. A union
    with a LateName occurs only in a function's annotation, and is therefore `Any`.
    """

    def __init__(self, module: str, name: str | None, importer: dict[str, Any]) -> None:
        self.__late = (module, name, importer)
        note_package(module)

    def real(self) -> Any:
        """Returns the real object, which also replaces the LateName in the importing module."""
        module, name, importer = self.__late
        value: Any = import_later(module)
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
