"""Compiles a kernel whose file has changed since its import, and prints what Triton made of it, as JSON.

The first argument is an empty folder. With `ours` as the second one, the hooks of an engine are placed.
"""

import importlib
import json
import sys
from pathlib import Path

if sys.argv[2] == "ours":
    from startup.vllm.patches.placing import place_hooks

    place_hooks("forkserver")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

_KERNEL = """
@triton.jit
def {name}(x_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x_ptr + i, tl.load(x_ptr + i) * {factor})
"""
_IMPORTS = "import triton\nimport triton.language as tl\n"
_BEFORE = _IMPORTS + _KERNEL.format(name="first", factor=2.0) + _KERNEL.format(name="second", factor=3.0)
_AFTER = _IMPORTS + _KERNEL.format(name="new", factor=100.0) + _KERNEL.format(name="first", factor=200.0)

file = Path(sys.argv[1], "toy_kernels.py")
file.write_text(_BEFORE)
sys.path.insert(0, sys.argv[1])
second = importlib.import_module("toy_kernels").second
file.write_text(_AFTER)
signature = {"x_ptr": "*fp32", "BLOCK": "constexpr"}
compiled = compile_kernel(ASTSource(second, signature, {"BLOCK": 16}), target=GPUTarget("cuda", 90, 32))
text = compiled.asm["ttir"]
factors = [factor for factor in ("2.0", "3.0", "100.0", "200.0") if f"{float(factor):.6e}" in text]
print(json.dumps({"source": second.src, "key": second.cache_key, "members": sorted(vars(second)), "factors": factors}))
