"""With real Triton, a described kernel is compiled under its own key, and kept where all models find it."""

import json
import os
import subprocess

from tests.support.peer_vllm import PYTHON, ROOT

_KERNELS = """
import triton
import triton.language as tl

@triton.jit
def scale(x, FACTOR: tl.constexpr):
    return x * FACTOR

@triton.jit
def add(x_ptr, y_ptr, n, scale_it: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.minimum(tl.load(x_ptr + i, mask=i < n), LIMIT)
    tl.store(y_ptr + i, scale_it(x, 2.0), mask=i < n)
"""
"""A function as a constant, and a number that JSON does not have."""
_USE_THEM = """
import inspect, json, os, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import toy_kernels as toys
from startup.imports.finder import place
from startup.kernels.compiling import CompileJob, run_job
from startup.kernels.kernel import Kernel
from startup.kernels.triton_cache import keep
from startup.storage.caches import of_type
from startup.vllm.journal import Journal, StartRecordings, this_start
from startup.vllm.patches.early_kernels import EARLY_KERNELS, SHARED_KERNELS

folder = Path(sys.argv[1])
place(EARLY_KERNELS)
place(SHARED_KERNELS)
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compiler
from triton.runtime import build

KEPT, MODEL = "cache/vllm_cli/triton", "cache/torch_compile_cache/hash/rank_0_0/triton_cache"

def keys(name):
    return sorted(path.parent.name for path in (folder / name).glob("*/__grp__add.json"))

def compile_add(num_warps, how):
    types = {"x_ptr": "*bf16", "y_ptr": "*bf16", "n": "i32"}
    constants = {"scale_it": toys.scale, "LIMIT": float("inf"), "BLOCK": 64}
    signature = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(toys.add, signature, constants, {(0,): [["tt.divisibility", 16]], (1,): [], (2,): []})
    return how(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})

def compile_now(num_warps):
    compile_add(num_warps, inspect.unwrap(compiler.compile))

compile_now(1)  # before this start, or without vllm-cli
os.environ["TRITON_CACHE_DIR"] = str(folder / MODEL)  # as vLLM does for the compiled model
compile_now(4)
before = {name: keys(name) for name in ("home/.triton/cache", MODEL)}
this_start.journal, this_start.environment = Journal(folder), {"HOME": os.environ["HOME"]}
for num_warps in (1, 4, 8, 8):
    compile_add(num_warps, compiler.compile)
new = keys(KEPT)
built = []
for text in ("int one;", "int two;"):  # the first is compiled while vLLM's folder is set
    built.append(str(Path(build.compile_so_from_src(text, "library")).parents[1].relative_to(folder)))
    os.environ.pop("TRITON_CACHE_DIR", None)
compile_now(1)
compile_now(2)  # as for a kernel that cannot be described
after = {name: keys(name) for name in before}
recordings = StartRecordings.read(folder)
keep(recordings.kernel_keys.values(), {})
kernels = tuple(of_type(Kernel)(fields) for fields in recordings.kernels)
beside = folder / "beside"
job = CompileJob(kernels=kernels, capability=(9, 0), folder=str(beside / "compiled"))
found = replace(job, folder=str(beside / "found"), others=(str(folder / KEPT),))
reports = [run_job(each) for each in (job, found)]
print(json.dumps({
    "before": before, "after": after, "new": new, "kept": keys(KEPT), "built": built,
    "times": [fields["compile_s"] > 0 for fields in recordings.kernels], "warps": [each.options for each in kernels],
    "compiled": [report.num_compiled for report in reports], "problems": [report.problems for report in reports],
    "beside": [keys("beside/compiled"), keys("beside/found")],
}))
"""


def test_a_kernel_is_kept_for_all_models_and_described(tmp_path):
    (tmp_path / "toy_kernels.py").write_text(_KERNELS)
    folders = {"HOME": str(tmp_path / "home"), "VLLM_CACHE_ROOT": str(tmp_path / "cache")}
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    run = [PYTHON, "-c", _USE_THEM, tmp_path]
    done = subprocess.run(run, capture_output=True, text=True, env={**variables, **folders}, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    (of_triton,), (of_model,) = answer["before"].values()
    assert answer["after"] == answer["before"], "a kernel went to the home folder or to the folder of the model"
    assert answer["times"] == [False, False, True, False], "two were there before, and one was compiled once"
    assert len(answer["new"]) == 1, "a kernel that another cache has is compiled again"
    assert len(answer["kept"]) == 4
    assert set(answer["kept"]) > {of_triton, of_model, *answer["new"]}
    assert answer["built"] == ["cache/vllm_cli/triton"] * 2
    assert answer["problems"] == [{}, {}]
    assert answer["compiled"] == [3, 0], "what a cache has is compiled"
    used = sorted([of_triton, of_model, *answer["new"]])
    assert answer["beside"] == [used, used], "another process gives it another key"
    assert answer["warps"] == [{"num_warps": 1}, {}, {"num_warps": 8}, {"num_warps": 8}]
