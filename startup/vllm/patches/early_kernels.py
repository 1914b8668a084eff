"""Kernels of Triton that are compiled beside the engine, and where they are kept.

Triton compiles a kernel when it is first launched, while everything waits. So processes of their own compile
the kernels that a start will need (`startup.vllm.fork.kernel_processes`). An engine that needs a kernel while
it is being compiled waits for it, because a second compilation would take longer.

vLLM sets Triton's cache to the folder of the compiled model. The kernels of vLLM's own modules depend on no
model, so they stay in Triton's first cache, where starts of other models find them.
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
from startup.kernels.compiling import COMPILE, NEEDS, default_options, is_cached, key_of
from startup.kernels.kernel import REGISTRY, Kernel, describe
from startup.vllm.journal import is_importable, this_start

_CACHE_DIR: Final = "TRITON_CACHE_DIR"
_MANAGER: Final = Name("triton.compiler.compiler", "get_cache_manager", ("key",))
_FILE_MANAGER: Final = Name("triton.runtime.cache", "FileCacheManager", ("key",))
_BASE32: Final = Name("triton.runtime.cache", "_base32", ("key",))
EARLY_KERNELS: Final = Hook(
    "early kernels",
    does="compiles Triton's kernels that a start will need in processes of their own, while the engine starts",
    without="in a first start, the engine compiles the sampler's kernels one after the other",
    gain_in=("stand-in, eager, first", "stand-in, compiled, first"),
    needs=(*NEEDS, REGISTRY),
    places={"forkserver", "template"},
)
SHARED_KERNELS: Final = EARLY_KERNELS.part(
    _MANAGER,
    _FILE_MANAGER,
    _BASE32,
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

_compiling: Final = threading.local()
"""`folder`: the cache for the kernel that this thread compiles now. Missing: the cache that vLLM has set."""


def shared_folder() -> str | None:
    """Triton's cache of this start, before vLLM sets another one. None if kernels cannot be kept there."""
    variables = this_start.environment
    if any(map(foreign.text_of, _OTHER_CACHES)) or not variables:
        return None
    home = variables.get("TRITON_HOME") or foreign.expand_home("~/")
    folder = variables.get(_CACHE_DIR) or str(Path(home, ".triton", "cache"))
    return folder if _can_write(folder) else None


@functools.cache
def _can_write(folder: str) -> bool:
    """Whether this process can keep files in the folder, which is created if it does not exist."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


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
        _compiling.folder = use.folder
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
            _compiling.folder = None

    return compile_or_wait


@wraps(SHARED_KERNELS, _MANAGER)
def _keep_in_shared_folder(get: Callable[[str], Any]) -> Callable[[str], Any]:
    def get_manager(key: str) -> Any:
        folder = getattr(_compiling, "folder", None)
        if folder is None:
            return get(key)
        kind = _FILE_MANAGER.get()
        manager = kind.__new__(kind)
        manager.key = _BASE32.get()(key)
        manager.cache_dir = os.path.join(folder, manager.key)  # noqa: PTH118 - as Triton, which appends to it
        manager.lock_path = os.path.join(manager.cache_dir, "lock")  # noqa: PTH118
        os.makedirs(manager.cache_dir, exist_ok=True)  # noqa: PTH103
        return manager

    return get_manager


def _examine(source: Any, target: Any, options: Mapping[str, Any] | None) -> _Use | None:
    """The kernel. None if it is none of vLLM's, is kept elsewhere, or if Triton has changed."""
    folder, claims = shared_folder(), claims_folder()
    if folder is None or claims is None or target is None:
        return None
    try:
        if not is_importable(source.fn.module):
            return None
        kernel = describe(source, options or {}, default_options(target))
        if kernel is None:
            return None
        use = _Use(kernel, key_of(source, target, options), source.name, folder, Claims(claims))
        return use if _is_kept_there(use) else None
    except Exception:  # noqa: BLE001 - Triton then does everything itself
        return None


def _is_kept_there(use: _Use) -> bool:
    """Whether the kernel belongs into the folder. One that only vLLM's present folder has stays in that."""
    current = foreign.text_of(_CACHE_DIR)
    if not current or current == use.folder or use.is_cached:
        return True
    return SHARED_KERNELS.applies and not is_cached(current, use.key, use.name)


def _record(use: _Use, *, compile_s: float = 0.0, waited_s: float = 0.0) -> None:
    """Records that this process uses the kernel, how long it compiled it, and how long it waited for it."""
    if this_start.journal is not None:
        times = {"compile_s": round(compile_s, 3), "waited_s": round(waited_s, 3)}
        kernel = {**asdict(use.kernel), **times, "id": use.kernel.id}
        this_start.journal.write(kernel=kernel, key=use.key)
