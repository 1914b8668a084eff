"""With lean imports, every architecture gives the same tokens. Left out modules are not imported."""

import gc
import importlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
import torch

from startup.imports import lean
from startup.imports.heavy import importing
from startup.imports.lean import SHAPE_FUNCTIONS, import_lean
from tests.server.engine.tiny_models import PACKED, SEQUENTIAL, build_model
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
