"""Hooks run once after a module is imported, and do not import it earlier."""

import importlib
import logging
import sys
from importlib.util import find_spec

import pytest

from startup.imports.finder import after_import
from tests.startup.toy_package import ToyPackages


def test_hook_runs_once_right_after_the_import(toys: ToyPackages) -> None:
    toys.write("toy.part", "value = 1\n")
    seen: list[int] = []
    after_import("toy.part", lambda module: seen.append(module.value))
    assert "toy" not in sys.modules
    module = importlib.import_module("toy.part")
    importlib.import_module("toy.part")
    assert seen == [1]
    assert module.__spec__.loader is module.__loader__
    assert "Hook" not in type(module.__loader__).__name__


def test_hook_runs_at_once_for_a_loaded_module(toys: ToyPackages) -> None:
    toys.write("toy", "value = 2\n")
    importlib.import_module("toy")
    seen: list[int] = []
    after_import("toy", lambda module: seen.append(module.value))
    assert seen == [2]


def test_finding_the_module_without_importing_it_keeps_the_hook(toys: ToyPackages) -> None:
    toys.write("toy.part", "value = 3\n")
    seen: list[int] = []
    after_import("toy.part", lambda module: seen.append(module.value))
    spec = find_spec("toy.part")
    assert spec is not None
    assert spec.origin is not None and spec.origin.endswith("part.py")
    assert seen == []
    importlib.import_module("toy.part")
    assert seen == [3]


def test_the_loader_gives_the_modules_own_source(toys: ToyPackages) -> None:
    toys.write("toy.part", "value = 4\n")
    after_import("toy.part", lambda module: None)
    spec = find_spec("toy.part")
    assert spec is not None and spec.loader is not None
    assert spec.loader.get_source("toy.part") == "value = 4\n"


def test_several_hooks_on_one_module_all_run(toys: ToyPackages) -> None:
    toys.write("toy")
    seen: list[str] = []
    after_import("toy", lambda module: seen.append("first"))
    after_import("toy", lambda module: seen.append("second"))
    importlib.import_module("toy")
    assert sorted(seen) == ["first", "second"]


def test_a_failed_import_keeps_the_hook_for_the_next_one(toys: ToyPackages) -> None:
    toys.write("toy", "raise ValueError('not yet')\n")
    seen: list[str] = []
    after_import("toy", lambda module: seen.append(module.__name__))
    with pytest.raises(ValueError, match="not yet"):
        importlib.import_module("toy")
    assert seen == []
    toys.write("toy", "# now, and longer than before\n")
    importlib.import_module("toy")
    assert seen == ["toy"]


def test_a_hook_that_raises_is_a_warning(toys: ToyPackages, caplog: pytest.LogCaptureFixture) -> None:
    toys.write("toy")
    after_import("toy", lambda module: module.is_not_there)
    assert importlib.import_module("toy").__name__ == "toy"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "toy is not as expected" in record.getMessage()


def test_a_missing_module_is_the_importers_error(toys: ToyPackages) -> None:
    after_import("toy_that_is_not_there", lambda module: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("toy_that_is_not_there")
