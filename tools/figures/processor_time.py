"""Reads the processor time of all processes of a server, including processes that have ended."""

import ctypes
from contextlib import suppress
from typing import Final

import psutil

_PR_SET_CHILD_SUBREAPER: Final = 36
_MOST_TRIES: Final = 5


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose parent has ended: `descendants_s` counts them."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants_s(pid: int | None = None) -> float:
    """The processor seconds of all descendants of a process, by default of this one, since they began.

    The kernel adds those of a process that has ended to the parent that has waited for it. If processes begin
    or end during the reading, it is repeated, so that none is missed or counted twice.
    """
    root = psutil.Process(pid)
    for _ in range(_MOST_TRIES):
        family = root.children(recursive=True)
        seconds = sum(map(_own_and_ended_s, family)) + _ended_s(root)
        if set(root.children(recursive=True)) == set(family):
            break
    return seconds


def _own_and_ended_s(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


def _ended_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.children_user + times.children_system)
