"""Decides when torch's compiler is imported. This import takes half of the API server's import time.

vLLM imports `torch._dynamo` and `torch._inductor` in every process, to patch them and to decorate functions
that only some workers run. In a process that will probably compile nothing, this module defers the import
until the compiler is used.

vLLM stores a compiled model as a file (AOT). On CPU, vLLM 0.32 writes the file but cannot load it, because
vLLM calls the compiled function's method `finalize_loading`, which only its own backend's functions have.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FunctionType, ModuleType
from typing import Any, Final, Literal

from envs import foreign
from startup.hook import Hook, Name, Text, uses
from startup.imports.finder import after_import, alters, replaced
from startup.imports.stand_ins import StandIns
from startup.vllm_arguments.vllm_line import VllmLine

CompilerTime = Literal["now", "deferred"]
"""`now`: the compiler is imported together with vLLM. `deferred`: it is imported when it is first used."""

COMPILER: Final = "torch._inductor.lowering"
"""vLLM imports this module (0.6 s) to patch it and to decorate helpers, even if vLLM compiles nothing."""

_COMPILE: Final = Name("torch", "compile", ("model",))
_IS_LAZY: Final = "_vllm_cli_is_lazy"
_TRACER: Final = "torch._dynamo"
"""The part of the compiler that traces functions. Torch marks functions that it must not trace."""

_DEFERRED_MODULES: Final = (
    "functorch.compile",
    "sympy",
    _TRACER,
    "torch._functorch.aot_autograd",
    "torch._inductor",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.utils._sympy",
)
_INNER_KERNELS: Final = Name("torch._library.triton", "get_inner_triton_kernels", ("fn",))
DEFERRED_COMPILER: Final = Hook(
    "deferred compiler",
    does="imports torch's compiler when a decorated function is first called",
    without="eager starts import torch's compiler in the API server and on CPU",
    gain_in=("CPU, eager, later",),
    needs=(_COMPILE, _INNER_KERNELS, Name("torch._dynamo"), Name("torch._inductor")),
)

_HIDE: Final = Name("torch", "_disable_dynamo", ("fn", "recursive"))
HIDDEN_CALLS: Final = DEFERRED_COMPILER.part(_HIDE)

_DECORATORS: Final = "vllm.compilation.decorators"
_LOAD_COMPILED: Final = Name("torch.compiler", "load_compiled_function")
AOT_LOADING: Final = Hook(
    "loading of compiled models",
    does="adds `finalize_loading`, which vLLM calls, to Inductor's functions",
    without="vLLM for CPU compiles the model in every start",
    gain_in=("CPU, compiled, later",),
    promise="later starts load the compiled model",
    needs=(
        Text(_DECORATORS, r"torch\.compiler\.load_compiled_function\(", "torch.compiler.load_compiled_function()"),
        Text(_DECORATORS, r"\._artifacts\.compiled_fn\.finalize_loading\(", "finalize_loading()"),
    ),
    places={"forkserver"},
)


def may_defer_compiler(line: VllmLine, start_method: str) -> bool:
    """Whether `lean imports` are on, and no model will run in the API server's process or a fork of it."""
    runs_here = foreign.text_of("VLLM_ENABLE_V1_MULTIPROCESSING") not in ("", "1") or line.has("--headless")
    return uses("lean imports") and not runs_here and start_method != "fork"


@contextmanager
def compiler_imported(when: CompilerTime) -> Iterator[None]:
    """If `when` is `deferred`, vLLM's imports inside this context do not load torch's compiler."""
    if when == "now" or not DEFERRED_COMPILER.applies:
        yield
        return
    after_import(_COMPILE.module, _make_compile_lazy, DEFERRED_COMPILER)
    after_import(_HIDE.module, _hide_from_loaded_compiler, HIDDEN_CALLS)
    stand_ins = StandIns(_DEFERRED_MODULES, become_real=True)
    stand_ins.install()
    try:
        # torch searches Triton operators for kernels, for which it parses their source with the compiler.
        # After torch's import, the hook is checked once more, and then finds this function.
        with replaced(_INNER_KERNELS, lambda find: lambda fn: []):
            yield
    finally:
        stand_ins.remove()


@alters(AOT_LOADING, _DECORATORS)
def _add_finalize_loading(decorators: ModuleType) -> None:
    """Adds an empty `finalize_loading` to Inductor's functions, which are complete once they are loaded."""
    compiler = decorators.torch.compiler
    load = _LOAD_COMPILED.get(compiler)

    @functools.wraps(load)
    def load_and_complete(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        compiled = getattr(getattr(loaded, "_artifacts", None), "compiled_fn", None)
        if compiled is not None and not hasattr(compiled, "finalize_loading"):
            with suppress(AttributeError, TypeError):
                compiled.finalize_loading = lambda config: None
        return loaded

    _LOAD_COMPILED.replace(compiler, load_and_complete)


def _make_compile_lazy(torch: Any) -> None:
    """Makes `torch.compile` compile a function only at its first call, because compiling imports Inductor."""
    compile_now = _COMPILE.get(torch)
    if hasattr(compile_now, _IS_LAZY):
        return

    @functools.wraps(compile_now)
    def compile_lazily(model: Any = None, **options: Any) -> Any:
        if model is None:
            return functools.partial(compile_lazily, **options)
        if not isinstance(model, FunctionType):
            return compile_now(model, **options)
        return _LazilyCompiled(lambda: compile_now(model, **options), model)

    setattr(compile_lazily, _IS_LAZY, True)
    _COMPILE.replace(torch, compile_lazily)


def _hide_from_loaded_compiler(torch: Any) -> None:
    """Makes torch hide functions from its compiler only once the compiler is imported.

    Otherwise vLLM would import the compiler (0.75 s) when it reloads weights after sleep. Each later sleep or
    wake-up would take 30 ms more, because vLLM collects garbage each time.
    """
    hide = _HIDE.get(torch)
    if hasattr(hide, _IS_LAZY):
        return

    @functools.wraps(hide)
    def hide_lazily(fn: Any = None, recursive: bool = True) -> Any:
        if fn is None:
            return functools.partial(hide_lazily, recursive=recursive)
        hidden = hide(fn, recursive)

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            return (hidden if _TRACER in sys.modules else fn)(*args, **kwargs)

        return call

    setattr(hide_lazily, _IS_LAZY, True)
    _HIDE.replace(torch, hide_lazily)


class _LazilyCompiled:
    """A function that is compiled on its first call."""

    def __init__(self, compile_now: Callable[[], Any], original: Any) -> None:
        functools.update_wrapper(self, original, updated=())
        self._compile_now = compile_now
        self._compiled: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._compiled is None:
            self._compiled = self._compile_now()
        return self._compiled(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)
