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
import inspect, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import toy_kernels as toys
from startup.imports.finder import place
from startup.kernels.compiling import CompileJob, run_job
from startup.kernels.kernel import Kernel
from startup.storage.caches import of_type
from startup.vllm.journal import Journal, StartRecordings, this_start
from startup.vllm.patches.early_kernels import EARLY_KERNELS, SHARED_KERNELS

folder = Path(sys.argv[1])
place(EARLY_KERNELS)
place(SHARED_KERNELS)
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compiler

def keys(name):
    return sorted(path.parent.name for path in (folder / name).glob("*/__grp__add.json"))

def compile_add(num_warps, how):
    types = {"x_ptr": "*bf16", "y_ptr": "*bf16", "n": "i32"}
    constants = {"scale_it": toys.scale, "LIMIT": float("inf"), "BLOCK": 64}
    signature = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(toys.add, signature, constants, {(0,): [["tt.divisibility", 16]], (1,): [], (2,): []})
    return how(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})

compile_add(4, inspect.unwrap(compiler.compile))  # before this start, or without vllm-cli
in_model = keys("model")
this_start.journal, this_start.environment = Journal(folder), {"TRITON_CACHE_DIR": str(folder / "shared")}
for num_warps in (4, 8, 8):
    compile_add(num_warps, compiler.compile)
recordings = StartRecordings.read(folder)
kernels = tuple(of_type(Kernel)(fields) for fields in recordings.kernels)
beside = run_job(CompileJob(kernels=kernels, capability=(9, 0), folder=str(folder / "beside")))
times = [fields["compile_s"] > 0 for fields in recordings.kernels]
answer = {"model": keys("model") == in_model, "shared": keys("shared"), "beside": keys("beside"), "times": times}
print(json.dumps(answer | {"problems": beside.problems, "first": len(in_model), "warps": kernels[0].options}))
"""


def test_a_kernel_is_kept_for_all_models_and_described(tmp_path):
    (tmp_path / "toy_kernels.py").write_text(_KERNELS)
    folders = {"TRITON_CACHE_DIR": str(tmp_path / "model"), "VLLM_CACHE_ROOT": str(tmp_path / "cache")}
    run = [PYTHON, "-c", _USE_THEM, tmp_path]
    done = subprocess.run(run, capture_output=True, text=True, env={**os.environ, **folders}, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["problems"] == {}
    assert answer["first"] == 1
    assert answer["model"], "a kernel went to the folder of the model"
    assert len(answer["shared"]) == 1, "a kernel that the model's folder has is not compiled again"
    assert answer["beside"] == answer["shared"], "another process gives it another key"
    assert answer["times"] == [True, False], "it was compiled once, and found once"
    assert answer["warps"] == {"num_warps": 8}
