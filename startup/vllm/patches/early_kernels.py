"""Kernels of Triton that are compiled beside the engine, and where they are kept.

Triton compiles a kernel when it is first launched, while everything waits. So processes of their own compile
the kernels that a start will need (`startup.vllm.fork.kernel_processes`). An engine that needs a kernel while
it is being compiled waits for it, because a second compilation would take longer.

Triton keeps kernels in `~`, which a new pod lacks, and vLLM sets Triton's cache to the folder of the compiled
model. The kernels of vLLM's own modules depend on no model. So starts keep them below VLLM_CACHE_ROOT, where
starts of other models find them (`startup.kernels.triton_cache`). What other caches have is used from there.
"""

import functools
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

from envs import foreign
from startup.hook import Hook, Name, Text
from startup.imports.finder import wraps
from startup.kernels.claims import Claims
from startup.kernels.compiling import COMPILE, NEEDS, default_options, key_of
from startup.kernels.kernel import REGISTRY, Kernel, describe
from startup.kernels.triton_cache import CACHE_DIR, HOME, has_files, is_cached, triton_folder, usable_folders
from startup.vllm.journal import is_importable, this_start

_LIBRARY: Final = Name("triton.runtime.build", "get_cache_manager", ("key",))
_INITIALIZE: Final = Name("triton.runtime.cache", "FileCacheManager.__init__", ("key", "override", "dump"))
EARLY_KERNELS: Final = Hook(
    "early kernels",
    does="compiles Triton's kernels that a start will need in processes of their own, while the engine starts",
    without="in a first start, the engine compiles the sampler's kernels one after the other",
    gain_in=("stand-in, eager, first", "stand-in, compiled, first"),
    needs=(*NEEDS, REGISTRY),
    places={"forkserver", "template"},
)
SHARED_KERNELS: Final = EARLY_KERNELS.part(
    _LIBRARY,
    _INITIALIZE,
    Text("triton.runtime.cache", r"self\.cache_dir = os\.path\.join\(self\.cache_dir, self\.key\)", "cache_dir"),
)
_OTHER_CACHES: Final = (
    "TRITON_CACHE_MANAGER",
    "TRITON_REMOTE_CACHE_BACKEND",
    "TRITON_ALWAYS_COMPILE",
    "TRITON_KERNEL_OVERRIDE",
    "TRITON_KERNEL_DUMP",
    "TRITON_INTERPRET",
)
"""With one of these variables, Triton keeps kernels elsewhere, or compiles in another way."""
_CLAIMS: Final = "kernels"
"""The folder in a start's folder with the claims of its processes."""

_now: Final = threading.local()
"""What this thread asks a cache for. `folder`: the cache for a kernel. `is_library`: whether it is a library.

Without either, it is something that vLLM and Triton keep where they like.
"""


def folders() -> tuple[str, ...]:
    """The caches of this start. New kernels go to the first. Empty if kernels cannot be kept."""
    variables = this_start.environment
    if any(map(foreign.text_of, _OTHER_CACHES)) or not variables:
        return ()
    if not SHARED_KERNELS.applies:
        return (str(triton_folder(variables)),)
    return _usable_folders(*(variables.get(name, "") for name in (CACHE_DIR, HOME)))


@functools.cache
def _usable_folders(cache_dir: str, home: str) -> tuple[str, ...]:
    return usable_folders({CACHE_DIR: cache_dir, HOME: home})


def claims_folder() -> Path | None:
    """The folder for `Claims` of this start. None in a template process."""
    return this_start.journal.folder / _CLAIMS if this_start.journal is not None else None


class _Use(NamedTuple):
    """A kernel that this process is about to load or compile, and that other processes can compile, too."""

    kernel: Kernel
    key: str
    name: str
    folder: str
    """Triton's cache for the kernel."""
    claims: Claims

    @property
    def is_cached(self) -> bool:
        return is_cached(self.folder, self.key, self.name)


@wraps(EARLY_KERNELS, COMPILE)
def _compile_once(compile_now: Callable[..., Any]) -> Callable[..., Any]:
    def compile_or_wait(src: Any, target: Any = None, options: Any = None, *args: Any, **kwargs: Any) -> Any:
        use = _examine(src, target, options)
        if use is None:
            return compile_now(src, target, options, *args, **kwargs)
        _now.folder = use.folder
        try:
            if use.is_cached:
                _record(use)
                return compile_now(src, target, options, *args, **kwargs)
            with use.claims.claimed(use.key) as waited_s:
                is_compiled = use.is_cached
                begin_s = time.monotonic()
                compiled = compile_now(src, target, options, *args, **kwargs)
            _record(use, compile_s=0.0 if is_compiled else time.monotonic() - begin_s, waited_s=waited_s)
            return compiled
        finally:
            _now.folder = None

    return compile_or_wait


@wraps(SHARED_KERNELS, _INITIALIZE)
def _use_folder_of_start(initialize: Callable[..., None]) -> Callable[..., None]:
    def initialize_in_folder(self: Any, key: str, override: bool = False, dump: bool = False) -> None:
        folder = None if override or dump else _folder_of(key)
        if folder is None:
            initialize(self, key, override, dump)
            return
        self.key = key
        self.cache_dir = os.path.join(folder, key)  # noqa: PTH118 - as Triton, which appends to it
        self.lock_path = os.path.join(self.cache_dir, "lock")  # noqa: PTH118
        os.makedirs(self.cache_dir, exist_ok=True)  # noqa: PTH103

    return initialize_in_folder


@wraps(SHARED_KERNELS, _LIBRARY)
def _find_library(get: Callable[[str], Any]) -> Callable[[str], Any]:
    """Libraries with which Triton launches kernels depend on no model, either."""

    def get_manager(key: str) -> Any:
        _now.is_library = True
        try:
            return get(key)
        finally:
            _now.is_library = False

    return get_manager


def _folder_of(key: str) -> str | None:
    """The cache for what this thread asks for. None: the present folder of Triton."""
    folder: str | None = getattr(_now, "folder", None)
    of_model = foreign.text_of(CACHE_DIR)
    if folder is not None or (of_model and not getattr(_now, "is_library", False)):
        return folder
    places = folders()
    found = (place for place in (*places, of_model) if place and has_files(place, key))
    return next(found, *places[:1] or [None])


def _examine(source: Any, target: Any, options: Mapping[str, Any] | None) -> _Use | None:
    """The kernel. None if it is none of vLLM's, is kept elsewhere, or if Triton has changed."""
    places, claims = folders(), claims_folder()
    if not places or claims is None or target is None:
        return None
    try:
        if not is_importable(source.fn.module):
            return None
        kernel = describe(source, options or {}, default_options(target))
        if kernel is None:
            return None
        key = key_of(source, target, options)
        of_model = foreign.text_of(CACHE_DIR)
        if not SHARED_KERNELS.applies and of_model not in ("", *places):
            return None
        found = (place for place in (*places, of_model) if place and is_cached(place, key, source.name))
        return _Use(kernel, key, source.name, next(found, places[0]), Claims(claims))
    except Exception:  # noqa: BLE001 - Triton then does everything itself
        return None


def _record(use: _Use, *, compile_s: float = 0.0, waited_s: float = 0.0) -> None:
    """Records that this process uses the kernel, how long it compiled it, and how long it waited for it."""
    if this_start.journal is not None:
        times = {"compile_s": round(compile_s, 3), "waited_s": round(waited_s, 3)}
        kernel = {**asdict(use.kernel), **times, "id": use.kernel.id}
        this_start.journal.write(kernel=kernel, key=use.key)
