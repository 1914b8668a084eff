"""A module that another one imports only to patch it is imported when it is needed, and patched then."""

import importlib
import sys

import pytest

from startup.hooks.hook import Name
from startup.imports.late_import import delay_import
from tests.startup.toy_package import ToyPackages

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


def test_a_late_import_is_patched(packages: ToyPackages) -> None:
    delay_import("heavy.part", patched_by=PATCH)
    importlib.import_module("light.override")
    assert "heavy.part" not in sys.modules
    assert importlib.import_module("heavy.part").is_patched


def test_without_the_delay_the_module_is_imported_at_once(packages: ToyPackages) -> None:
    importlib.import_module("light.override")
    assert sys.modules["heavy.part"].is_patched


@pytest.mark.parametrize("first", ["heavy.part", "light.override"])
def test_nothing_is_delayed_if_one_of_the_modules_is_loaded(packages: ToyPackages, first: str) -> None:
    importlib.import_module(first)
    finders = list(sys.meta_path)
    delay_import("heavy.part", patched_by=PATCH)
    assert sys.meta_path == finders
