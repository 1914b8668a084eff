"""Marks functions to be timed."""

from collections.abc import Callable
from typing import Any


def instrument(obj: Callable[..., Any] | None = None, *, span_name: str = "") -> Any:
    if obj is None:
        return lambda function: instrument(function, span_name=span_name)
    return obj
