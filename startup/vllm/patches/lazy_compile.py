"""Delays the import of torch's compiler until a function decorated with `torch.compile` is called.

vLLM decorates helpers of rarely used kernels. The decorator alone imports Inductor, which takes a second of a
start that may compile nothing.
"""

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final

from startup.hooks.left_out import applies
from startup.hooks.of_libraries import COMPILE, LAZY_COMPILE
from startup.imports.finder import after_import

_MARK: Final = "_vllm_cli_is_lazy"


def make_compile_lazy() -> None:
    """From now on `torch.compile` compiles a function on its first call; a second call does nothing."""
    if applies(LAZY_COMPILE):
        after_import(COMPILE.module, _replace_compile)


def _replace_compile(torch: Any) -> None:
    compile_now = COMPILE.get(torch)
    if hasattr(compile_now, _MARK):
        return

    @functools.wraps(compile_now)
    def compile_lazily(model: Any = None, **options: Any) -> Any:
        if model is None:
            return functools.partial(compile_lazily, **options)
        if not isinstance(model, FunctionType):
            return compile_now(model, **options)
        return _LazilyCompiled(lambda: compile_now(model, **options), model)

    setattr(compile_lazily, _MARK, True)
    COMPILE.replace(torch, compile_lazily)


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
