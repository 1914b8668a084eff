"""Which kernels a start needs: what starts of its kind have used, or else a list of this package.

A list for a release of vLLM is a file in `shipped`, which `tools/gpu_stub/kernels.py` writes. Each start
replaces the list of its kind, so a list has what the latest start has used.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from base.json_depth import read_json
from startup.hook import Release
from startup.imports.distributions import distribution_stamps
from startup.kernels.kernel import Kernel, ModelTraits, unique
from startup.storage.caches import CachedValue, of_type, read_all

_FOLDER: Final = "kernels"
_KEYS: Final = "kernel-keys"
_SHIPPED: Final = Path(__file__).with_name("shipped")
_MOST_KERNELS: Final = 300
_MOST_KEYS: Final = 1000
_NAMES: Final = {"half": "float16", "float": "float32"}


@dataclass(frozen=True)
class KernelUse:
    """The start for which kernels are looked up, or which has used them."""

    version: str
    """The version of vLLM."""
    release: Release
    kind: str
    """The kind of start: vLLM, architecture, flags that change modules, Python (`StartKind.key`)."""
    flags: tuple[str, ...]
    """The flags of the kind. Starts with equal flags need mostly the same kernels, whatever their model."""
    vocab_size: int | None = None
    dtype: str | None = None

    @property
    def traits(self) -> ModelTraits:
        return ModelTraits(self.vocab_size, self.dtype)


@dataclass(frozen=True)
class _KernelList:
    version: str
    flags: tuple[str, ...]
    kernels: tuple[Kernel, ...]


def read_traits(model: Path | None, dtype: str | None) -> ModelTraits:
    """The traits of a model's folder. `dtype` is the value of vLLM's flag. Unknown values are None."""
    config: dict[str, Any] = {}
    if model is not None:
        with suppress(OSError, ValueError, TypeError):
            config = dict(read_json((model / "config.json").read_bytes()))
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else config
    size = text.get("vocab_size")
    own = text.get("dtype") or text.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype")
    if dtype in (None, "auto"):
        dtype = "bfloat16" if own == "float32" else own  # vLLM computes such models in half precision
    return ModelTraits(
        vocab_size=size if isinstance(size, int) and size > 0 else None,
        dtype=_NAMES.get(str(dtype), str(dtype)) if dtype else None,
    )


def kernels_for(use: KernelUse) -> tuple[Kernel, ...]:
    """The kernels that the start probably needs, in the order in which to compile them.

    These are the kernels of the last start of its kind, the slowest first. For a new kind, they are those of
    the last start with the same flags, and then those of the release's list.
    """
    own = _cached(use).read(of_type(_KernelList))
    found = own.kernels if own is not None else (*_others(use), *shipped_kernels(use.release))
    return tuple(unique(kernel.for_model(use.traits) for kernel in found))[:_MOST_KERNELS]


def shipped_kernels(release: Release) -> tuple[Kernel, ...]:
    """The list for a release of vLLM, for any model. Empty if this package has none for it."""
    major, minor = release
    try:
        content = json.loads((_SHIPPED / f"vllm-{major}.{minor}.json").read_bytes())
    except FileNotFoundError:
        return ()
    return of_type(tuple[Kernel, ...])(content)


def save_kernels(use: KernelUse, kernels: Iterable[Kernel]) -> None:
    """Keeps the kernels that a start has used, for later starts of its kind and for other models.

    A kernel that this start has found in Triton's cache keeps the time that its compilation took earlier.
    """
    known_s = {kernel.id: kernel.compile_s for kernel in kernels_for(use)}
    timed = (replace(each, compile_s=each.compile_s or known_s.get(each.id, 0.0)) for each in kernels)
    slowest_first = sorted(timed, key=lambda kernel: -kernel.compile_s)
    for_any_model = unique(kernel.for_any_model(use.traits) for kernel in slowest_first)
    general = tuple(for_any_model)[:_MOST_KERNELS]
    _cached(use).write(asdict(_KernelList(use.version, use.flags, general)))


def read_keys(capability: tuple[int, int]) -> dict[str, str]:
    """Id of a kernel -> its folder in Triton's cache, for GPUs of this compute capability.

    Valid for the installed versions only. A wrong key makes a start look for a kernel in vain, or compile a
    kernel that it has; Triton itself computes all keys anew.
    """
    return _cached_keys(capability).read(of_type(dict[str, str])) or {}


def save_keys(capability: tuple[int, int], keys: Mapping[str, str]) -> None:
    """Adds keys of kernels to those that are kept."""
    known = read_keys(capability)
    if not keys.items() <= known.items():
        others = {name: key for name, key in known.items() if name not in keys}
        latest = list({**others, **keys}.items())
        _cached_keys(capability).write(dict(latest[-_MOST_KEYS:]))


def _others(use: KernelUse) -> tuple[Kernel, ...]:
    """The kernels of the last start of this vLLM with the same flags and another model. Empty if none."""
    lists = read_all(_FOLDER, of_type(_KernelList))
    for each in lists:
        if (each.version, each.flags) == (use.version, use.flags):
            return each.kernels
    return ()


def _cached(use: KernelUse) -> CachedValue:
    return CachedValue(_FOLDER, use.kind)


def _cached_keys(capability: tuple[int, int]) -> CachedValue:
    return CachedValue(_KEYS, capability, distribution_stamps())
