"""torch's compiler is imported when a function is compiled, and its names forward to real objects then."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from startup.vllm.patches import compiler
from startup.vllm.patches.compiler import compiler_imported

pytestmark = pytest.mark.thorough

_ROOT = Path(__file__).parents[3]

_WITH_TORCH = """
import json, sys
from startup.vllm.patches.compiler import compiler_imported

with compiler_imported("deferred"):
    import torch
    import torch._dynamo
    from torch._inductor import lowering

    @torch.compile(backend="eager")
    def add_one(x):
        return x + 1

    class Model:
        @torch.compile(backend="eager", dynamic=False)
        def add_two(self, x):
            return x + 2

    @torch._dynamo.disable
    def add_three(x):
        return x + 3

result = {"before": sorted(name for name in sys.modules if name.startswith(("torch._dynamo", "torch._inductor.")))}
result["name"] = add_one.__name__
result["undecorated"] = add_three(torch.tensor(1)).item()
result["function"] = add_one(torch.tensor(1)).item()
result["method"] = Model().add_two(torch.tensor(1)).item()
import torch._dynamo
result["graphs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
result["lowering"] = len(lowering.lowerings) > 100
result["cuda"] = torch.cuda.is_initialized()
print(json.dumps(result))
"""


def test_torch_compiles_a_function_on_its_first_call():
    done = subprocess.run([sys.executable, "-c", _WITH_TORCH], capture_output=True, text=True, timeout=250, cwd=_ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "before": [],
        "name": "add_one",
        "undecorated": 4,
        "function": 2,
        "method": 3,
        "graphs": 2,
        "lowering": True,
        "cuda": False,
    }


def test_the_stand_ins_are_removed_if_the_imports_fail(toys, monkeypatch):
    monkeypatch.setattr(compiler, "_DEFERRED_MODULES", ("heavy.part",))
    toys.write("heavy.part", "class Thing:\n    kind = 'real'\n")
    with pytest.raises(ValueError, match="broken"), compiler_imported("deferred"):
        stand_in = importlib.import_module("heavy.part")
        raise ValueError("broken")
    assert importlib.import_module("heavy.part") is not stand_in
    assert importlib.import_module("heavy.part").Thing.kind == "real"
