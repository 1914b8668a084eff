"""Lean imports leave modules out, and change no token. What stands in for modules is without effect."""

import gc
import importlib
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from startup.imports import lean
from startup.imports.heavy import importing
from startup.imports.lean import SHAPE_FUNCTIONS, import_lean
from startup.imports.stand_ins import StandIns
from tests.server.engine.tiny_models import PACKED, SEQUENTIAL, build_model
from tests.startup.conftest import ToyPackages
from tests.support.cli import python_output

_CONDITIONS = ("expect_true", "guard_or_false", "guard_or_true", "statically_known_true")


def _run(models: list[Path], *, lean: bool = True) -> list[object]:
    code = "from tests.startup.imports.lean_script import main; main()"
    output = python_output(code, *models, environment={"VCLI_LEAVE_OUT": "" if lean else "lean imports"})
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.slow
def test_the_real_model_generates_the_same_without_the_left_out_modules(model_path):
    lean, loaded, is_real = _run([model_path])
    assert loaded == []
    assert is_real is True
    assert lean == _run([model_path], lean=False)[0]


@pytest.mark.slow
def test_every_architecture_generates_the_tokens_of_transformers(tmp_path):
    prompt = torch.tensor([list(range(5, 45))])
    models, expected = [], []
    for name, options in (PACKED | SEQUENTIAL).items():
        model = build_model(name, options)
        if name == "gemma2":
            model.set_attn_implementation("eager")  # sdpa ignores its soft cap
        output = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, min_new_tokens=8, do_sample=False
        )
        model.save_pretrained(tmp_path / name)
        models.append(tmp_path / name)
        expected.append(output[0, 40:].tolist())
    *tokens, _, _ = _run(models)
    equal = {path.name: t == e for path, t, e in zip(models, tokens, expected, strict=True)}
    # min_new_tokens suppresses the end token in `generate`; a model that generates it differs afterwards.
    ends_early = {path.name for path, t in zip(models, tokens, strict=True) if 2 in t}
    assert {name for name, same in equal.items() if not same} <= ends_early


def test_a_module_that_a_stand_in_breaks_is_imported_without_it(toys, monkeypatch):
    toys.write("left_out_module", "VALUE = 1\n")
    toys.write("picky_module", "import left_out_module\nRESULT = left_out_module.VALUE + 1\n")
    monkeypatch.setattr(lean, "LEFT_OUT", ("left_out_module",))
    import_lean(["picky_module"])
    assert sys.modules["picky_module"].RESULT == 2
    assert sys.modules["left_out_module"].VALUE == 1


def test_a_module_that_only_imports_name_is_real_afterwards(toys, monkeypatch):
    toys.write("named_module", "VALUE = 1\n")
    toys.write("naming_module", "import sys\nfrom named_module import VALUE\n")
    monkeypatch.setattr(lean, "_LEFT_OUT_OF_IMPORTS", ("named_module", "not_installed_module"))
    import_lean(["naming_module"])
    assert sys.modules["naming_module"].VALUE != 1
    assert importlib.import_module("named_module").VALUE == 1
    assert importlib.util.find_spec("not_installed_module") is None


def test_plain_shapes_agree_with_torch_on_numbers():
    import torch.fx.experimental.symbolic_shapes as real

    calls: list[tuple[str, tuple[object, ...]]] = [
        *((name, (value,)) for name in _CONDITIONS for value in (True, False)),
        *((name, (3,)) for name in ("guarding_hint_or_throw", "has_guarding_hint", "is_nested_int")),
        *(("sym_eq", pair) for pair in ((2, 2), (2, 3), ((1, 2), [1, 2]), ((1, 2), (1, 3)), ((1,), (1, 2)), ((), ()))),
        *((name, values) for name in ("sym_and", "sym_or") for values in product((True, False), repeat=3)),
        ("sym_and", (True,)),
        ("sym_or", (False,)),
    ]
    assert {name for name, _ in calls} == set(SHAPE_FUNCTIONS)
    for name, arguments in calls:
        assert SHAPE_FUNCTIONS[name](*arguments) is getattr(real, name)(*arguments), (name, arguments)


@pytest.mark.thorough
def test_other_symbolic_shapes_are_the_real_ones():
    script = (
        "import torch, sys; from startup.imports.lean import LEFT_OUT, SHAPES, SHAPE_FUNCTIONS, StandIns;"
        "StandIns(LEFT_OUT, functions={SHAPES: SHAPE_FUNCTIONS}).install();"
        "from torch.fx.experimental.symbolic_shapes import guard_or_false; assert 'sympy' not in sys.modules;"
        "from torch.fx.experimental.symbolic_shapes import ShapeEnv; assert 'sympy.core' not in sys.modules;"
        "assert ShapeEnv().create_unbacked_symint; import sympy; sympy.Symbol('x')"
    )
    python_output(script)


def test_another_thread_is_rejected():
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="main thread"):
        pool.submit(importing().__enter__).result()


def test_collector_is_off_during_the_imports_and_on_afterwards():
    try:
        with importing():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


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


@contextmanager
def _deferred() -> Iterator[None]:
    stand_ins = StandIns(["heavy.part"], become_real=True)
    stand_ins.install()
    yield
    stand_ins.remove()


@pytest.fixture
def user(toys: ToyPackages) -> Any:
    """A module that was imported while another module had a stand-in. The stand-in becomes real later."""
    toys.write("heavy.part.deeper", "value = 8\n")
    toys.write("heavy.part.__init__", _HEAVY)
    toys.write("user", _USER)
    with _deferred():
        module = importlib.import_module("user")
        assert not module.is_thing(1)
    return module


def test_a_stand_in_of_a_package_that_was_installed_anew_meanwhile_is_refused(user, toys):
    toys.write("heavy.__init__", "version = 'another one'\n")
    with pytest.raises(ImportError, match="heavy was installed anew while this server was running"):
        user.takes(user.Thing())


def test_only_using_a_name_imports_the_module_and_names_are_the_real_objects_then(user):
    assert not user.is_thing(1), "no instance of a class can exist before its module"
    assert "heavy.part" not in sys.modules
    assert user.takes(None).kind == "real"
    assert (user.one(), user.two(), user.four()) == (1, 2, 4), "deferred decorators change nothing"
    real = importlib.import_module("heavy.part")
    assert isinstance(user.Thing(), real.Thing)
    assert user.part.Thing.kind == "real"
    assert user.part.not_imported_by_name == 7
    assert user.deeper.value == 8
    assert user.double(lambda: 5)() == 10
    assert user.configured(3)(lambda: 5)() == 15
    assert user.is_thing(real.Thing())


def test_submodules_are_deferred_too(toys):
    toys.write("heavy.part.deeper", "raise RuntimeError('imported')\n")
    toys.write("user", "from heavy.part.deeper import Deep\nimport heavy.part.deeper as deeper\n")
    with _deferred():
        importlib.import_module("user")
        assert sorted(name for name in sys.modules if name.startswith("heavy.part")) == [
            "heavy.part",
            "heavy.part.deeper",
        ]
    assert not any(name.startswith("heavy.part") for name in sys.modules)


def test_a_loaded_module_is_not_deferred(toys):
    toys.write("heavy.part", _HEAVY)
    real = importlib.import_module("heavy.part")
    with _deferred():
        assert importlib.import_module("heavy.part") is real
    assert sys.modules["heavy.part"] is real


def test_a_stand_in_is_a_decorator_without_effect_and_a_class_without_instances():
    stand_ins = StandIns(("no_such_module",))
    stand_ins.install()
    try:
        from no_such_module.inner import Thing, disable

        @disable
        def plain() -> int:
            return 3

        @disable(recursive=False)
        def with_arguments() -> int:
            return 4

        @disable(None, recursive=False)
        def as_torch_calls_it() -> int:
            return 5

        assert (plain(), with_arguments(), as_torch_calls_it()) == (3, 4, 5)
        assert not isinstance(3, Thing)
        assert Thing | None
    finally:
        stand_ins.remove()
    with pytest.raises(ModuleNotFoundError):
        import no_such_module  # noqa: F401
