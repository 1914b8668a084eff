"""Checks that the cost of a computation grows no faster than the size of its input."""

import gc
import sys
from collections.abc import Callable
from itertools import pairwise
from time import monotonic, thread_time_ns
from typing import Any

PER_DOUBLING = 3.2
"""The allowed growth for a doubled input. Linear cost grows by up to 3 at a cache's size, quadratic by 4."""
_MEASURABLE_NS = 300_000
_MOST = 1 << 16

Prepare = Callable[[int], Callable[[], object]]
"""A function that builds an input of this size, and returns the computation to measure."""


def growth(prepare: Prepare, smallest: int = 256, patience_s: float = 2.5) -> str | None:
    """Measures the cost of inputs of size n, 2n and 4n. Returns None for linear cost, else the costs as text.

    n is the first size whose cost can be measured. If the cost grows faster than the input, inputs of 4n, 8n
    and 16n decide, because the allocator's first requests for pages are a step in the cost. Each cost is the
    least processor time of several rounds, because a hypervisor or another process may slow a thread down for
    seconds. The rounds take at most `patience_s`. Tests that call this function are marked `alone`.
    """
    prepare(smallest)()  # what only a first call costs, such as imports
    n = smallest
    while min(_cost(prepare(n)) for _ in range(3)) < _MEASURABLE_NS and n < _MOST:
        n *= 2
    return _growth_from(prepare, n, patience_s) and _growth_from(prepare, 4 * n, patience_s)


def _growth_from(prepare: Prepare, n: int, patience_s: float) -> str | None:
    works = [prepare(n * times) for times in (1, 2, 4)]
    costs = [_cost(work) for work in works]
    give_up_s = monotonic() + patience_s
    while not _is_linear(costs) and monotonic() < give_up_s:
        costs = [min(cost, _cost(work)) for cost, work in zip(costs, works, strict=True)]
    shown = ", ".join(f"{cost / 1e6:.2f}" for cost in costs)
    return None if _is_linear(costs) else f"inputs of {n}, {2 * n} and {4 * n} take {shown} ms"


def _is_linear(costs: list[int]) -> bool:
    return all(after <= PER_DOUBLING * before or after < _MEASURABLE_NS for before, after in pairwise(costs))


def _cost(work: Callable[[], object]) -> int:
    start = thread_time_ns()
    work()
    return thread_time_ns() - start


def count_calls(run: Callable[[], object]) -> int:
    """The number of calls of functions, in Python and in C. It is the same in each run."""
    num = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal num
        num += event in ("call", "c_call")

    gc.disable()  # a collection may call functions, such as hypothesis's
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
        gc.enable()
    return num
