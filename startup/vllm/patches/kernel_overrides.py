"""Replaces Triton's kernels on CPUs in less time.

vLLM for CPU replaces some kernels by functions of its own. It looks for references to them in all attributes
of all loaded modules, and in the attributes of these. In a fork, Python copies the pages of all objects that
it touches. Packages that vLLM depends on have no references to vLLM's kernels.
"""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

from startup.hook import Hook, Name, Text
from startup.imports.finder import wraps
from startup.imports.late_modules import is_late

_REBIND: Final = Name("vllm.triton_utils.dispatcher", "_rebind_kernels", ("overrides",))
KERNEL_OVERRIDES: Final = Hook(
    "kernel overrides",
    does="looks for references to replaced kernels only in vLLM and in packages that may use vLLM",
    without="each worker on a CPU without Triton looks through all modules, and copies their pages",
    gain_in=("CPU, eager, later",),
    needs=(
        _REBIND,
        Text(_REBIND.module, r"for module in list\(sys\.modules\.values\(\)\):", "a search through all modules"),
    ),
    since=(0, 32),
    places={"forkserver", "template"},
)

_WITHOUT_VLLM: Final = frozenset(
    (
        *sys.stdlib_module_names,
        "PIL",
        "aiohttp",
        "cv2",
        "fastapi",
        "google",
        "huggingface_hub",
        "mistral_common",
        "mpmath",
        "networkx",
        "numpy",
        "openai",
        "openai_harmony",
        "pydantic",
        "scipy",
        "setuptools",
        "starlette",
        "sympy",
        "tokenizers",
        "torch",
        "torchvision",
        "transformers",
        "triton",
    )
)
"""Packages that never import vLLM, because vLLM depends on them. The large ones are enough."""


@wraps(KERNEL_OVERRIDES, _REBIND)
def _rebind_in_fewer_modules(rebind: Callable[[Any], None]) -> Callable[[Any], None]:
    def rebind_in_fewer_modules(overrides: Any) -> None:
        dispatcher: Any = _REBIND.loaded
        modules = {name: each for name, each in sys.modules.items() if not _is_without_kernels(name)}
        own_sys, dispatcher.sys = dispatcher.sys, SimpleNamespace(modules=modules)
        try:
            rebind(overrides)
        finally:
            dispatcher.sys = own_sys

    return rebind_in_fewer_modules


def _is_without_kernels(module: str) -> bool:
    return module.partition(".")[0] in _WITHOUT_VLLM or is_late(module)
