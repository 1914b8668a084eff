"""Names of torch's compiler are stand-ins while vLLM is imported, and forward to real objects afterwards."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from startup.vllm.patches import compiler as deferred_compiler_module
from startup.vllm.patches.compiler import deferred_compiler
from tests.startup.toy_package import ToyPackages

pytestmark = pytest.mark.thorough

_ROOT = Path(__file__).parents[3]
_HEAVY = """
def double(function):
    return lambda *args: 2 * function(*args)

def configured(factor):
    return lambda function: lambda *args: factor * function(*args)

class Thing:
    kind = "real"

not_imported_by_name = 7
"""
_USER = """
import heavy.part as part
from heavy.part import Thing, configured, deeper, double

@double
def one():
    return 1

@configured(3)
def two():
    return 2

@part.double
def four():
    return 4

def is_thing(value):
    return isinstance(value, Thing)

def takes(value: Thing | None, other: None | Thing = None) -> int | Thing:
    return Thing
"""


@pytest.fixture
def user(toys: ToyPackages, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that was imported while the names of another module were deferred."""
    monkeypatch.setattr(deferred_compiler_module, "DEFERRED_MODULES", ("heavy.part",))
    toys.write("heavy.part.deeper", "value = 8\n")
    toys.write("heavy.part.__init__", _HEAVY)
    toys.write("user", _USER)
    with deferred_compiler():
        module = importlib.import_module("user")
        assert not module.is_thing(1)
    return module


def test_deferred_decorators_change_nothing(user: Any) -> None:
    assert (user.one(), user.two(), user.four()) == (1, 2, 4)


def test_using_a_name_imports_the_module(user: Any) -> None:
    assert "heavy.part" not in sys.modules
    assert user.takes(None).kind == "real"
    assert "heavy.part" in sys.modules


def test_names_are_the_real_objects_after_the_imports(user: Any) -> None:
    real = importlib.import_module("heavy.part")
    assert isinstance(user.Thing(), real.Thing)
    assert user.part.Thing.kind == "real"
    assert user.part.not_imported_by_name == 7
    assert user.deeper.value == 8
    assert user.double(lambda: 5)() == 10
    assert user.configured(3)(lambda: 5)() == 15
    assert user.is_thing(real.Thing())
    assert not user.is_thing(1)


def test_nothing_is_an_instance_before_the_module_is_imported(user: Any) -> None:
    assert not user.is_thing(1)
    assert "heavy.part" not in sys.modules


def test_submodules_are_deferred_too(toys: ToyPackages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred_compiler_module, "DEFERRED_MODULES", ("heavy.part",))
    toys.write("heavy.part.deeper", "raise RuntimeError('imported')\n")
    toys.write("user", "from heavy.part.deeper import Deep\nimport heavy.part.deeper as deeper\n")
    with deferred_compiler():
        importlib.import_module("user")
        assert sorted(name for name in sys.modules if name.startswith("heavy.part")) == [
            "heavy.part",
            "heavy.part.deeper",
        ]
    assert not any(name.startswith("heavy.part") for name in sys.modules)


def test_a_loaded_module_is_not_deferred(toys: ToyPackages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred_compiler_module, "DEFERRED_MODULES", ("heavy.part",))
    toys.write("heavy.part", _HEAVY)
    real = importlib.import_module("heavy.part")
    with deferred_compiler():
        assert importlib.import_module("heavy.part") is real
    assert sys.modules["heavy.part"] is real


def test_finder_is_removed_if_the_imports_fail(toys: ToyPackages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred_compiler_module, "DEFERRED_MODULES", ("heavy.part",))
    toys.write("heavy.part", _HEAVY)
    with pytest.raises(ValueError, match="broken"), deferred_compiler():
        import_module = importlib.import_module("heavy.part")
        raise ValueError("broken")
    assert importlib.import_module("heavy.part") is not import_module
    assert importlib.import_module("heavy.part").Thing.kind == "real"


_WITH_TORCH = """
import json, sys
from startup.vllm.patches.lazy_compile import make_compile_lazy
from startup.vllm.patches.compiler import deferred_compiler

make_compile_lazy()
with deferred_compiler():
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


def test_torch_compiles_a_function_on_its_first_call() -> None:
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
