"""Skips work that transformers and safetensors repeat for each tensor, a third of the time for a small model.

They compile a regular expression per tensor that nothing is matched against, look one up for its device,
start threads that only create views of the mapped file, and read the first byte of each view.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import core_model_loading


@contextmanager
def without_tensor_overhead(*, copies_tensors: bool) -> Iterator[None]:
    """While open, loading does less work with the same result; unknown versions of the loader stay unchanged.

    Args:
        copies_tensors: tensors are converted or moved to another device, in which case threads are of use.
    """
    replacements: dict[tuple[Any, str], Any] = {
        (core_model_loading, "re"): _LazyPatterns(),
        (torch, "asarray"): _asarray_without_reading(torch.asarray),
    }
    if not copies_tensors:
        replacements[core_model_loading, "ThreadPoolExecutor"] = _CallerThread
    if hasattr(core_model_loading, "get_device"):
        replacements[core_model_loading, "get_device"] = _device_getter(core_model_loading.get_device)
    originals = {place: getattr(*place) for place in replacements if hasattr(*place)}
    for place in originals:
        setattr(*place, replacements[place])
    try:
        yield
    finally:
        for place, original in originals.items():
            setattr(*place, original)


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
        if name.startswith("__"):  # `copy` reads its protocol's methods
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


def _asarray_without_reading(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`torch.asarray` as safetensors calls it for a view of the mapped file, without reading the file.

    torch's own reads the first byte, on which the tensor does not depend. Where the page cache does not have
    it, each of these reads waits for the disk: together 2 s for 182 tensors of 2.6 GB.
    """

    def asarray(data: Any, **options: Any) -> torch.Tensor:
        if isinstance(data, torch.UntypedStorage) and options == {"dtype": torch.uint8}:
            return torch.empty(0, dtype=torch.uint8).set_(data)
        return original(data, **options)

    return asarray
