"""Replaces torch's functions for symbolic shapes where all sizes are numbers, as without torch.compile.

Names and results are those of `torch.fx.experimental.symbolic_shapes`, which imports sympy: 0.2 s of a start.
"""

import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

from startup.hooks.of_libraries import SHAPES_MODULE

INSTEAD_OF = SHAPES_MODULE


def _itself(value: int) -> int:
    return value


def _expect_true(condition: bool, skip: int = 0) -> bool:
    return condition


def _sym_and(first: bool, *others: bool) -> bool:
    return reduce(operator.and_, others, first)


def _sym_or(first: bool, *others: bool) -> bool:
    return reduce(operator.or_, others, first)


def _sym_eq(x: Any, y: Any) -> bool:
    if isinstance(x, tuple | list) and isinstance(y, tuple | list):
        return list(x) == list(y)
    return bool(x == y)


def _is_nested_int(size: int) -> bool:
    return False


def _has_guarding_hint(size: int) -> bool:
    return True


FUNCTIONS: Mapping[str, Callable[..., int]] = {
    "expect_true": _expect_true,
    "guard_or_false": _itself,
    "guard_or_true": _itself,
    "guarding_hint_or_throw": _itself,
    "has_guarding_hint": _has_guarding_hint,
    "is_nested_int": _is_nested_int,
    "statically_known_true": _itself,
    "sym_and": _sym_and,
    "sym_eq": _sym_eq,
    "sym_or": _sym_or,
}
