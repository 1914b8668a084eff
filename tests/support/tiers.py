"""Marks values of a parameter, so that faster tiers of the tests run only with some of them."""

from collections.abc import Iterable
from typing import Any

import pytest


def thorough_but_for(names: Iterable[Any], *fast: Any) -> list[Any]:
    """The names or other values as parameters of a test. `make test` runs it only with those in `fast`."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.thorough) for name in names]


def slow_but_for(names: Iterable[str], *others: str) -> list[Any]:
    """The names as parameters of a test. `.ci/run` runs the test only with the names in `others`."""
    return [name if name in others else pytest.param(name, marks=pytest.mark.slow) for name in names]
