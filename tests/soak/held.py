"""Measures the resources of processes in the pauses between equal loads, and finds growth."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import psutil

_SHARE = 0.01
_NOISE_BYTES = 1 << 20
_SETTLE_S = 60.0
_POLL_S = 0.5


class Held(NamedTuple):
    """The resources of some processes together."""

    memory_bytes: int
    files: int
    threads: int
    processes: int


def measure(processes: Iterable[psutil.Process]) -> Held:
    """Measures these processes. Leaves out processes that exit meanwhile."""
    memory_bytes = files = threads = number = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess), process.oneshot():
            memory_bytes += process.memory_info().rss
            files += process.num_fds()
            threads += process.num_threads()
            number += 1
    return Held(memory_bytes, files, threads, number)


def settle(measure_now: Callable[[], Held], earlier: Sequence[Held]) -> Held:
    """Waits up to a minute for three readings in a row with equal numbers and without growth."""
    readings: list[Held] = []
    deadline_s = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline_s:
        readings = [*readings, measure_now()][-3:]
        is_stable = len(readings) == 3 and len({reading[1:] for reading in readings}) == 1
        if is_stable and not find_growth([*earlier, readings[-1]]):
            break
        time.sleep(_POLL_S)
    return readings[-1]


def find_growth(rests: Sequence[Held]) -> list[str]:
    """One line for each resource of which the last pause has more than each earlier pause.

    The first pause does not count, because caches are not full before it. Memory may exceed the maximum of
    earlier pauses by 1 % and a megabyte. A server with a leak has more memory in each pause, even if its
    memory varies under load.
    """
    judged, last = rests[1:-1], rests[-1]
    if not judged:
        return []
    most = Held(*(max(values) for values in zip(*judged, strict=True)))
    allowed = most._replace(memory_bytes=int(most.memory_bytes * (1 + _SHARE)) + _NOISE_BYTES)
    return [
        f"{name}: {now} in the last pause, at most {before} earlier"
        for name, now, before, limit in zip(Held._fields, last, most, allowed, strict=True)
        if now > limit
    ]
