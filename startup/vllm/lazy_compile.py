"""Puts the import of torch's compiler off until a function that is decorated with `torch.compile` is called.

vLLM decorates helpers of rare kernels; that alone imports Inductor, a second of a start that may compile nothing.
"""

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

from startup.vllm.import_hooks import after_import


def make_compile_lazy() -> None:
    """From now on `torch.compile` notes what it is to do to a function, and does it when that is called."""
    after_import("torch", _note_instead)


def _note_instead(torch: Any) -> None:
    compile_now = torch.compile

    @functools.wraps(compile_now)
    def note(model: Any = None, **options: Any) -> Any:
        if model is None:
            return functools.partial(note, **options)
        if not isinstance(model, FunctionType):
            return compile_now(model, **options)
        return _CompiledLater(lambda: compile_now(model, **options), model)

    torch.compile = note


class _CompiledLater:
    """A function that is compiled when it is called for the first time."""

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
