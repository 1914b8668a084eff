"""Values of a parameter, of which a tier of tests has only some."""

from collections.abc import Iterable
from typing import Any

import pytest


def thorough_but_for(names: Iterable[str], *fast: str) -> list[Any]:
    """Of these, `make test` has only some."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.thorough) for name in names]


def slow_but_for(names: Iterable[str], *others: str) -> list[Any]:
    """Of these, `.ci/run` has only some."""
    return [name if name in others else pytest.param(name, marks=pytest.mark.slow) for name in names]
