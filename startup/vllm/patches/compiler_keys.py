"""Keeps hashes of Inductor's and Triton's installed sources. The keys of both caches contain the hashes."""

import functools
import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from startup.ground.caches import Kept
from startup.ground.hooks.hook import Hook, Name
from startup.imports.finder import wrap_after_import

_COMPUTED: Final = (
    Name("torch._inductor.codecache", "torch_key", ()),
    Name("torch._inductor.cpu_vec_isa", "valid_vec_isa_list", ()),
)
COMPILER_KEYS: Final = Hook(
    "compiler keys",
    does="hashes Inductor's sources once in a standby; remembers the hash of Triton's files",
    without="a warm start that compiles hashes Inductor's sources; each start on a GPU hashes 300 MB",
    gain="0.80 (0.75–0.84) of a warm start that compiles; 0.5 s of each start on a GPU",
    needs=_COMPUTED,
)
_TRITON_KEY: Final = Name("triton.runtime.cache", "triton_key", ())
TRITON_KEY: Final = COMPILER_KEYS.part(_TRITON_KEY)

_HASHED: Final = ("_C", "backends", "compiler", "language", "runtime")
"""The folders of Triton's package whose files Triton hashes."""


def keep_triton_key() -> None:
    """From now on, this process and its forks compute Triton's hash only if Triton's files have changed."""
    if TRITON_KEY.applies:
        wrap_after_import(_TRITON_KEY, _kept_key, TRITON_KEY)


def _kept_key(compute: Callable[[], str]) -> Callable[[], str]:
    @functools.cache
    def key() -> str:
        package = Path(sys.modules["triton"].__file__ or "").parent
        kept = Kept("triton-key", str(package))
        if (known := kept.read(str, is_own=True)) is not None:
            return known
        files = [str(file) for name in _HASHED for file in (package / name).rglob("*") if file.suffix in (".py", ".so")]
        value = compute()
        kept.write(value, files)
        return value

    return key


def fill_compiler_keys() -> None:
    """Computes the hash of Inductor's installed sources, and finds out which vector instructions work."""
    for key in _COMPUTED if COMPILER_KEYS.applies else ():
        with suppress(Exception):  # speeds up only
            key.get(importlib.import_module(key.module))()
