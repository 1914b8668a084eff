"""Skips work of transformers' loader that it repeats for each tensor, a third of the time for a small one.

It compiles a regular expression per tensor that nothing is matched against, looks one up for its device, and
starts threads that only create views of the mapped file.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import core_model_loading


@contextmanager
def without_tensor_overhead(*, copies_tensors: bool) -> Iterator[None]:
    """While open, loading does less work with the same result; unknown versions of the loader stay unchanged.

    Args:
        copies_tensors: tensors are converted or moved to another device, in which case threads are of use.
    """
    replacements: dict[str, Any] = {"re": _LazyPatterns()}
    if not copies_tensors:
        replacements["ThreadPoolExecutor"] = _CallerThread
    module: Any = core_model_loading
    if hasattr(module, "get_device"):
        replacements["get_device"] = _device_getter(module.get_device)
    originals = {name: getattr(module, name) for name in replacements if hasattr(module, name)}
    for name in originals:
        setattr(module, name, replacements[name])
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(module, name, original)


class _LazyPatterns:
    """The module `re`, but for patterns that are compiled when they are first used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(re, name)

    def compile(self, pattern: str) -> "_LazyPattern":
        return _LazyPattern(pattern)


class _LazyPattern:
    """A pattern of `re` as far as the loader uses it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # `copy` asks for its protocol's methods
            raise AttributeError(name)
        return getattr(re.compile(self._text), name)


class _CallerThread:
    """An executor whose jobs run when their results are needed, as the loader itself does without threads."""

    def __init__(self, max_workers: int) -> None:
        pass

    def submit(self, job: Callable[[], Any]) -> Callable[[], Any]:
        return job

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        pass


def _device_getter(original: Callable[..., Any]) -> Callable[..., Any]:
    """`get_device` without a regular expression for models on one device."""

    def get_device(device_map: Any, name: str, *words: Any, **options: Any) -> Any:
        if device_map is not None and list(device_map) == [""] and device_map[""] != "disk":
            return device_map[""]
        return original(device_map, name, *words, **options)

    return get_device
