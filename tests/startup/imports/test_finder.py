"""Actions run once, before or after a module's code; a module that is only patched can be imported later."""

import importlib
import logging
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest

from startup.hooks.hook import Name
from startup.imports.finder import after_import, before_import, cancel, delay_import
from tests.startup.toy_package import ToyPackages


def test_hook_runs_once_right_after_the_import(toys):
    toys.write("toy.part", "value = 1\n")
    seen: list[int] = []
    after_import("toy.part", lambda module: seen.append(module.value))
    assert "toy" not in sys.modules
    module = importlib.import_module("toy.part")
    importlib.import_module("toy.part")
    assert seen == [1]
    assert module.__spec__.loader is module.__loader__
    assert "Acting" not in type(module.__loader__).__name__


def test_hook_runs_at_once_for_a_loaded_module(toys):
    toys.write("toy", "value = 2\n")
    importlib.import_module("toy")
    seen: list[int] = []
    after_import("toy", lambda module: seen.append(module.value))
    assert seen == [2]


def test_finding_the_module_without_importing_it_keeps_the_hook(toys):
    toys.write("toy.part", "value = 3\n")
    seen: list[int] = []
    after_import("toy.part", lambda module: seen.append(module.value))
    spec = find_spec("toy.part")
    assert spec is not None
    assert spec.origin is not None and spec.origin.endswith("part.py")
    assert seen == []
    importlib.import_module("toy.part")
    assert seen == [3]


def test_the_loader_gives_the_modules_own_source(toys):
    toys.write("toy.part", "value = 4\n")
    after_import("toy.part", lambda module: None)
    spec = find_spec("toy.part")
    assert spec is not None and spec.loader is not None
    assert spec.loader.get_source("toy.part") == "value = 4\n"


def test_several_hooks_on_one_module_all_run(toys):
    toys.write("toy")
    seen: list[str] = []
    after_import("toy", lambda module: seen.append("first"))
    after_import("toy", lambda module: seen.append("second"))
    importlib.import_module("toy")
    assert sorted(seen) == ["first", "second"]


def test_a_failed_import_keeps_the_hook_for_the_next_one(toys):
    toys.write("toy", "raise ValueError('not yet')\n")
    seen: list[str] = []
    after_import("toy", lambda module: seen.append(module.__name__))
    with pytest.raises(ValueError, match="not yet"):
        importlib.import_module("toy")
    assert seen == []
    toys.write("toy", "# now, and longer than before\n")
    importlib.import_module("toy")
    assert seen == ["toy"]


def test_a_hook_that_raises_is_a_warning(toys, caplog):
    toys.write("toy")
    after_import("toy", lambda module: module.is_not_there)
    assert importlib.import_module("toy").__name__ == "toy"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "toy is not as expected" in record.getMessage()


def test_a_missing_module_is_the_importers_error(toys):
    after_import("toy_that_is_not_there", lambda module: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("toy_that_is_not_there")


def test_an_action_before_the_import_can_set_names_for_the_modules_code(toys):
    toys.write("toy", "value = given + 1\n")
    toys.write("other", "given = None\n")
    seen: list[str] = []

    def give(module: ModuleType) -> None:
        vars(module)["given"] = 4
        seen.append(module.__name__)

    before_import("toy", give)
    before_import("other", give)
    cancel("other", give)
    assert importlib.import_module("toy").value == 5
    importlib.import_module("other")
    assert seen == ["toy"]
    cancel("toy", give)


def test_the_finder_is_there_only_while_it_has_something_to_do(toys):
    toys.write("toy")
    finders = list(sys.meta_path)
    after_import("toy", lambda module: None)
    assert sys.meta_path[1:] == finders
    importlib.import_module("toy")
    assert sys.meta_path == finders


PATCH = Name("light.override", "patch")
_PATCHES = """
def patch():
    try:
        from heavy import part
    except ImportError:
        return
    part.is_patched = True

patch()
"""


@pytest.fixture
def packages(toys: ToyPackages) -> ToyPackages:
    toys.write("heavy.part", "is_patched = False\n")
    toys.write("light.override", _PATCHES)
    return toys


def test_a_late_import_is_patched(packages):
    delay_import("heavy.part", patched_by=PATCH)
    importlib.import_module("light.override")
    assert "heavy.part" not in sys.modules
    assert importlib.import_module("heavy.part").is_patched


def test_without_the_delay_the_module_is_imported_at_once(packages):
    importlib.import_module("light.override")
    assert sys.modules["heavy.part"].is_patched


@pytest.mark.parametrize("first", ["heavy.part", "light.override"])
def test_nothing_is_delayed_if_one_of_the_modules_is_loaded(packages, first):
    importlib.import_module(first)
    finders = list(sys.meta_path)
    delay_import("heavy.part", patched_by=PATCH)
    assert sys.meta_path == finders
