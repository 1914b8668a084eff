"""Prints what Triton knows of a few kernels, as JSON. With `late`, it reads their sources late."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

if sys.argv[1] == "late":
    from startup.imports.finder import place
    from startup.vllm.patches.triton_sources import LATE_SOURCES

    place(LATE_SOURCES)

import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

SIZE = tl.constexpr(16)
_SHOWN = ("__name__", "__doc__", "__module__", "arg_names", "constexprs", "starting_line_number", "raw_src", "src")


@triton.jit
def scale(x):
    return x * SIZE


@triton.autotune(configs=[triton.Config({"BLOCK": 32})], key=["n"])
@triton.heuristics({"EVEN": lambda args: args["n"] % 2 == 0})
@triton.jit(do_not_specialize=["n"])
def add(x_ptr, y_ptr, n, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """Adds."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, scale(tl.load(x_ptr + i, mask=i < n)), mask=i < n)


def _without_source() -> str:
    namespace: dict[str, Any] = {}
    exec("def kernel(x): pass", namespace)
    try:
        return str(triton.jit(namespace["kernel"]))
    except ValueError as err:
        return str(err)


kernels = [scale, add.fn.fn]
num_read = sum("raw_src" in vars(kernel) for kernel in kernels)
with ThreadPoolExecutor(8) as pool:
    keys = set(pool.map(lambda _: kernels[1].cache_key, range(8)))
changed = JITFunction(scale.fn)
changed._unsafe_update_src(changed.src.replace("*", "+"))
answer = {
    "facts": [{name: getattr(kernel, name, "absent") for name in (*_SHOWN, "_fn_name")} for kernel in kernels],
    "keys": [*keys, scale.cache_key, changed.cache_key, changed.src],
    "different": len({scale, kernels[1]}),
    "unknown": hasattr(scale, "no_such_attribute"),
    "without source": _without_source(),
}
print(json.dumps({"answer": answer, "num_read": num_read}))
