"""Keeps what torch's and Triton's compilers find out about this installation and its processor.

The keys of both caches contain hashes of the installed sources. For CPUs, Inductor compiles test libraries
for sets of vector instructions, and loads each library in a new program.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from startup.hook import Hook, Name
from startup.imports.distributions import distribution_stamps
from startup.imports.finder import wraps
from startup.storage.caches import CachedValue

_COMPUTED: Final = (
    Name("torch._inductor.codecache", "torch_key", ()),
    Name("torch._inductor.cpu_vec_isa", "valid_vec_isa_list", ()),
)
COMPILER_KEYS: Final = Hook(
    "compiler keys",
    does="hashes Inductor's sources once in a standby; remembers the hash of Triton's files",
    without="a warm start that compiles hashes Inductor's sources; each start on a GPU hashes 300 MB",
    gain_in=("CPU, compiled, beside a standby", "stand-in, compiled, later"),
    needs=_COMPUTED,
)
_TRITON_KEY: Final = Name("triton.runtime.cache", "triton_key", ())
TRITON_KEY: Final = COMPILER_KEYS.part(_TRITON_KEY, places={"forkserver", "template"})

_PROBE: Final = Name("torch._inductor.cpu_vec_isa", "VecISA._probe_load", ("output_path",))
VECTOR_PROBES: Final = Hook(
    "vector probes",
    does="remembers which vector instructions Inductor's test libraries have found",
    without="a compiled start on CPU loads six libraries again, each in a new program",
    gain_in=("CPU, compiled, later",),
    needs=(_PROBE,),
    places={"forkserver", "template"},
)
_LOADED: Final = ".load_ok"
"""Torch 2.14 itself writes a file with this ending beside a library that it has loaded."""

_HASHED: Final = ("_C", "backends", "compiler", "language", "runtime")
"""The folders of Triton's package whose files Triton hashes."""


@wraps(TRITON_KEY, _TRITON_KEY)
def _cached_key(compute: Callable[[], str]) -> Callable[[], str]:
    @functools.cache
    def key() -> str:
        package = Path(sys.modules["triton"].__file__ or "").parent
        cached = CachedValue("triton-key", str(package), distribution_stamps())
        if (known := cached.read(str)) is not None:
            return known
        found = (file for name in _HASHED for file in (package / name).rglob("*"))
        files = [str(file) for file in found if file.suffix in (".py", ".so")]
        value = compute()
        cached.write(value, files)
        return value

    return key


@wraps(VECTOR_PROBES, _PROBE)
def _cached_probe(probe: Callable[[Any, str], bool]) -> Callable[[Any, str], bool]:
    def probe_once(isa: Any, output_path: str) -> bool:
        mark = Path(output_path + _LOADED)
        if mark.exists():
            return True
        is_loaded = probe(isa, output_path)
        if is_loaded:
            with suppress(OSError):
                mark.touch()
        return is_loaded

    return probe_once


def fill_compiler_keys() -> None:
    """Computes the hash of Inductor's installed sources, and finds out which vector instructions work."""
    for key in _COMPUTED if COMPILER_KEYS.applies else ():
        with suppress(Exception):  # speeds up only
            key.get(importlib.import_module(key.module))()
