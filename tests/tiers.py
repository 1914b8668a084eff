"""A pytest plugin: which tests are `thorough` without a decorator.

A test that starts one of `STARTERS`, itself or through functions and fixtures, is `thorough`, unless it is
marked `smoke`: `make test` has one start of each kind of process, `make test-thorough` has the others.
"""

import inspect
from collections.abc import Callable, Iterable
from functools import cache
from types import CodeType, FunctionType
from typing import Any, Final

import pytest

STARTERS: Final = frozenset(
    {"ServerProcess", "RouterProcess", "StandbyProcess", "cold_or_warm", "FakeStart", "run_fake", "BaseEnvironment"}
)
"""Functions, classes and fixtures that start a program of ours. A new one is added here."""


def thorough_but_for(names: Iterable[str], *fast: str) -> list[Any]:
    """Values of a parameter, of which `make test` has only some."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.thorough) for name in names]


def slow_but_for(names: Iterable[str], *others: str) -> list[Any]:
    """Values of a parameter, of which `.ci/run` has only some."""
    return [name if name in others else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before pytest selects by marks."""
    for item in items:
        if isinstance(item, pytest.Function) and not item.get_closest_marker("smoke") and _starts_a_program(item):
            item.add_marker("thorough")


def _starts_a_program(item: pytest.Function) -> bool:
    fixtures = [definition.func for found in item._fixtureinfo.name2fixturedefs.values() for definition in found]
    names = frozenset(item.fixturenames).union(*map(find_names, (item.function, *fixtures)))
    return not STARTERS.isdisjoint(names)


@cache
def find_names(function: Callable[..., Any]) -> frozenset[str]:
    """The names in a function's code, and in the functions and classes of the tests that it names."""
    names: set[str] = set()
    objects: list[object] = [function]
    seen: set[object] = set()
    while objects:
        found = objects.pop()
        if isinstance(found, type):
            objects += vars(found).values()
        found = inspect.unwrap(found) if callable(found) else found
        if not isinstance(found, FunctionType) or found in seen:
            continue
        seen.add(found)
        new = _names_in(found.__code__)
        names |= new
        values = (found.__globals__.get(name) for name in new)
        modules = ("tests.", found.__module__)
        objects += [one for one in values if str(getattr(one, "__module__", "")).startswith(modules)]
    return frozenset(names)


def _names_in(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return {*code.co_names}.union(*map(_names_in, inner))
