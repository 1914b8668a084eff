"""Stand-ins are decorators without effect and classes without instances. Some become real objects later."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from startup.imports.stand_ins import StandIns
from tests.startup.conftest import ToyPackages

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
