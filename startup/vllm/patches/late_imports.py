"""Delays vLLM's imports of names that few requests need, until such a name is used."""

import builtins
import functools
import importlib
import pkgutil
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final, NamedTuple

from startup.hook import Hook, Name, Text
from startup.imports.distributions import import_later, note_package
from startup.imports.finder import after_import, before_import, cancel, replace, stop_replacing, wraps
from startup.imports.heavy import importing
from startup.imports.stand_ins import StandIns
from startup.vllm.patches.late_graphs import stays_idle

LATE_NAMES: Final = Hook(
    "unused imports",
    does="delays imports of names used only in calls or annotations; omits other subcommands",
    without="processes import what few requests use",
    gain="0.89 (0.86–0.99) of a cold start; subcommands 0.82 (0.79–0.94)",
    needs=(
        Text("vllm.connections", r"^import aiohttp\b", "import aiohttp"),
        Text("vllm.v1.structured_output", r"^from vllm\.v1\.structured_output\.backend_xgrammar import", "an import"),
    ),
)
FLASHINFER: Final = LATE_NAMES.part(
    Text("flashinfer._build_meta", r'^__version__ = "0\.7\.2', "version 0.7.2"), since=(0, 33)
)
UNUSED_COMMANDS: Final = LATE_NAMES.part(Text("vllm.entrypoints.cli.main", r"\.cmd_init\(", "cmd_init()"))


_POLL: Final = Name("vllm.v1.engine.core", "EngineCoreProc._process_input_queue", ())
_BLOCK: Final = Text(_POLL.module, r"block = self\.process_input_queue_block\n", "process_input_queue_block")
WHEN_IDLE: Final = LATE_NAMES.part(_POLL, _BLOCK, places={"forkserver"})
_IDLE_S: Final = 3.0
"""Most first requests come sooner after readiness. They do not wait for these imports."""


class LateImport(NamedTuple):
    """An import statement of the module `importer`, which uses the names only after its own import."""

    importer: str
    module: str
    requires: str | None = None
    """A package that a statement in a `try` needs. Without it, the statement runs and raises ImportError."""


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
        "_build_meta", "api_logging", "artifacts", "autotune_cache", "autotuner.", "comm.", "compilation_context",
        "cuda_utils", "fi_trace", "fused_moe", "fused_moe.utils", "jit.", "sampling", "tactics_blocklist", "tllm_enums",
        "tllm_utils", "trace.", "utils", "version",
    )
)  # fmt: skip
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


@wraps(WHEN_IDLE, _POLL)
def _prepare_when_idle(poll: Callable[[Any], None]) -> Callable[[Any], None]:
    """Prepares for rare requests once no request has come for a while."""
    todo: list[Callable[[Any], None]] = [_do_idle_work, _prepare_grammars]

    def prepare_and_poll(engine: Any) -> None:
        end_s = time.monotonic() + _IDLE_S
        while todo and engine.process_input_queue_block and engine.is_running() and not engine.has_work():
            if stays_idle(engine.input_queue, end_s - time.monotonic()):
                todo.pop()(engine)
            else:  # such as a question whether the engine is alive, or a part of the time has passed
                engine.process_input_queue_block = False
                poll(engine)
                engine.process_input_queue_block = True
        poll(engine)

    return prepare_and_poll


_idle_work: Final[list[Callable[[], None]]] = []
"""The work of this process that is done once no request has come for a while."""


def does_idle_work(config: Any) -> bool:
    """Whether an engine with this configuration will do the work of `add_idle_work` in all its processes."""
    return WHEN_IDLE.applies and (config.parallel_config.distributed_executor_backend == "uni" or _has_workers(config))


def add_idle_work(work: Callable[[], None]) -> None:
    """Adds work that is done once no request has come for a while. Called in an engine or a worker.

    Under steady load, the work may never be done. Errors are ignored, so it must only speed up.
    """
    _idle_work.append(work)


def _prepare_grammars(engine: Any) -> None:
    _in_all_processes(engine, _import_grammars)
    with suppress(Exception):  # a request that needs it gets the error
        getattr(engine.structured_output_manager, "tokenizer", None)


def _do_idle_work(engine: Any) -> None:
    _in_all_processes(engine, _do_own_work)


def _in_all_processes(engine: Any, function: Callable[..., None]) -> None:
    function()
    if _has_workers(engine.vllm_config):
        engine.model_executor.collective_rpc(function)


def _has_workers(config: Any) -> bool:
    """Whether the engine has workers, all of which are processes of this machine."""
    parallel = config.parallel_config
    return parallel.distributed_executor_backend == "mp" and getattr(parallel, "nnodes", 1) == 1


def _import_grammars(_: Any = None) -> None:
    with suppress(Exception), importing():
        import_later("vllm.v1.structured_output.backend_xgrammar")


def _do_own_work(_: Any = None) -> None:
    while _idle_work:
        with suppress(Exception):
            _idle_work.pop()()


@contextmanager
def late_imports(*, in_engine: bool = False) -> Iterator[None]:
    """Inside this context, vLLM's imports of rarely used names return stand-ins for unloaded modules.

    Late packages stay late in this process and its forks, which import some of them when the model is loaded.
    """
    if not LATE_NAMES.applies:
        yield
        return
    make_late(_LATE_PACKAGES)
    is_known = FLASHINFER.applies and _is_installed("cutlass")
    make_late(_LATE_FLASHINFER if is_known else {}, is_known=True)
    stand_in = StandIns([_INTRINSICS] if is_known else [], become_real=True)
    stand_in.install()
    try:
        of_flashinfer = _IN_FLASHINFER if is_known else ()
        with late_names((*_EVERYWHERE, *of_flashinfer, *(_IN_ENGINES if in_engine else ()))):
            yield
    finally:
        stand_in.remove()


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


def make_late(packages: Mapping[str, Collection[str]], *, is_known: bool = False) -> None:
    """Makes packages that are imported from now on import a name of their modules when it is first used.

    Args:
        packages: package -> its modules that can be imported before these names. An import of another module
            imports all names first, as in plain Python. If there are none, each module can. A name that ends
            with a dot stands for a package and all its modules.
        is_known: whether these modules are known to import no others. Otherwise, their sources are searched.
    """
    for name, light in packages.items():
        package = _LatePackage(name, light, is_known)
        before_import(name, package.delay_imports)
        after_import(name, package.offer_names)


class _LatePackage:
    """Makes a package's own statements `from .module import name` return stand-ins."""

    def __init__(self, name: str, light: Collection[str], is_known: bool) -> None:
        self.name = name
        self._light = frozenset(light)
        self._light_packages = tuple(each for each in light if each.endswith("."))
        self._is_known = is_known
        self._own = f"{name}."
        self._modules: set[str] = set()
        """The names of the modules whose import is late."""

    def delay_imports(self, package: ModuleType) -> None:
        """Called before the package's code runs."""
        if self._is_known or all(map(self._imports_no_others, self._light)):
            vars(package)["__builtins__"] = {**vars(builtins), "__import__": self._import}

    def _imports_no_others(self, module: str) -> bool:
        """Whether the source of a light module imports only light modules of the package."""
        spec = PathFinder.find_spec(module, sys.modules[self.name].__path__)
        text = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
        imported = re.findall(rf"^(?:import|from) ({re.escape(self.name)}[.\w]*|\.[.\w]*)", text, re.MULTILINE)
        return bool(text) and self._light.issuperset(imported)

    def _import(self, name: str, own: Any = None, _: Any = None, names: Any = (), level: int = 0) -> Any:
        """Does what `__import__` does. `own`: the package's namespace."""
        module = resolve_name("." * level + name, self.name) if level else name
        if module == self.name and names:
            return SimpleNamespace(**{each: LateName(f"{self._own}{each}", None, own) for each in names})
        if not names or "*" in names or not module.startswith(self._own):
            return builtins.__import__(name, own, None, names, level)
        self._modules.add(module.removeprefix(self._own))
        return SimpleNamespace(**{name: LateName(module, name, own) for name in names})

    def offer_names(self, package: ModuleType) -> None:
        """Makes the package import a late name when another module asks for it."""
        vars(package)["__builtins__"] = vars(builtins)
        if self._modules:
            package.__class__ = _with_late_names(self._modules, self._modules & vars(package).keys())
            if self._light:
                replace(self._import_names_first)

    def _import_names_first(self, module: str) -> ModuleSpec | None:
        """Called before each import. The spec of a module that has been imported meanwhile, else None."""
        is_light = module in self._light or f"{module}.".startswith(self._light_packages)
        if is_light or not module.startswith(self._own):
            return None
        stop_replacing(self._import_names_first)
        for value in list(vars(sys.modules[self.name]).values()):
            if type(value) is LateName:
                value.real()
        loaded = sys.modules.get(module)
        return ModuleSpec(module, _Loaded(loaded)) if loaded is not None else None


class _Loaded(Loader):
    """Loads a module that is loaded already."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _with_late_names(modules: Set[str], hidden: Set[str]) -> type[ModuleType]:
    """Returns the class of a package with late names.

    Args:
        modules: the names of its late modules. Plain Python would have bound them to the package.
        hidden: names of modules that the package uses for something else, so they are not bound.
    """

    class Package(ModuleType):
        def __getattribute__(self, key: str) -> Any:
            value = super().__getattribute__(key)
            return value.real() if type(value) is LateName else value

        def __getattr__(self, key: str) -> Any:
            if key in modules and key not in hidden:
                return importlib.import_module(f"{self.__name__}.{key}")
            raise AttributeError(f"module {self.__name__!r} has no attribute {key!r}", name=key, obj=self)

        def __setattr__(self, key: str, value: Any) -> None:
            if key not in hidden or not isinstance(value, ModuleType):
                super().__setattr__(key, value)

    return Package


def _delay_imports(late: Mapping[str, str | None], importer: ModuleType) -> None:
    """Gives the module `importer` an `__import__` that returns stand-ins while the module's code is run.

    When Python begins to run code, it takes the built-in names, such as `__import__`, from the module's
    `__builtins__`. Functions that the module's code defines get the usual built-in names.
    """
    namespace = vars(importer)

    def import_late(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        namespace["__builtins__"] = vars(builtins)  # for functions that are defined from now on
        wanted = resolve_name("." * level + name, namespace["__package__"]) if level else name
        if modules := {each for each in fromlist or () if f"{wanted}.{each}" in late}:
            real = builtins.__import__(name, globals, locals, [*set(fromlist).difference(modules)], level)
            stand_ins = {each: LateName(f"{wanted}.{each}", None, namespace) for each in modules}
            return SimpleNamespace(**{**vars(real), **stand_ins})
        if wanted not in late or _is_complete(wanted, fromlist) or not _is_installed(late[wanted]):
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
        return pkgutil.resolve_name, (f"{module}:{name or ''}",)

    def __or__(self, other: Any) -> Any:
        return Any

    __ror__ = __or__


def _is_complete(module: str, names: Iterable[str] | None) -> bool:
    """Whether the module is loaded, and none of these names of it is late."""
    loaded = sys.modules.get(module)
    return loaded is not None and not any(type(vars(loaded).get(name)) is LateName for name in names or ())


def _is_installed(package: str | None) -> bool:
    try:
        return package is None or find_spec(package) is not None
    except ImportError:
        return False
