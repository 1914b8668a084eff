"""Packs weights, imports the modules that stand-ins replaced, and trims the heap while the engine is idle."""

import gc
from math import inf
from time import monotonic
from typing import Protocol

from base.machine.libc import HeapTrimmer, keep_freed_memory
from server.engine.base_core import BaseCore

_DELAY_S = 0.5
"""The seconds from the first request, which the API process itself sends, until idle work begins. One piece
of idle work takes 0.4 s, and would delay a client that has waited for readiness."""
_STEP_SHARE = 0.5
"""After a step, idle work takes this share of the step's time. Without steps, it is done one piece at a
time. Packing the weights takes 1.4 s for 135 million parameters, in pieces of at most 20 ms. Afterwards,
steps are up to three times as fast."""
_TRIM_DELAY_S = 5.0
"""Seconds from the last step until the heap is trimmed, which takes 15 ms."""
_TRIM_INTERVAL_S = 60.0
"""The seconds between trims under load. Tensors of many sizes leave gaps in the heap, about 20 MiB in ten
minutes."""


class Imports(Protocol):
    """The stand-ins, which replace modules of torch and transformers that most servers do not need."""

    def end(self) -> None:
        """Stops replacing modules by stand-ins. Later imports get the real modules."""

    def restore(self) -> bool:
        """Imports the modules of torch that stand-ins have replaced. Returns False if there are none."""


class IdleWork:
    """Does idle work piece by piece, between two steps, on the engine's thread."""

    def __init__(self, core: BaseCore, imports: Imports) -> None:
        self._core = core
        self._preparation = core.prepare()
        self._imports = imports
        self._trimmer = HeapTrimmer(_TRIM_DELAY_S, _TRIM_INTERVAL_S)
        self._has_request = False
        self._work_due_s = inf
        """The time at which work other than trimming continues. Infinite once this work is done."""

    @property
    def due_s(self) -> float:
        """The time of the monotonic clock at which `run_if_due` next has something to do."""
        return min(self._trimmer.due_s, self._work_due_s)

    def note_request(self) -> None:
        """Called for each request. The first request starts the delay of the idle work."""
        if not self._has_request:
            self._has_request = True
            self._work_due_s = monotonic() + _DELAY_S

    def run_if_due(self, step_s: float) -> None:
        """Does a part of the work, after a step that took `step_s` seconds (0 if no step has run)."""
        if step_s:
            self._trimmer.postpone()
        self._trimmer.trim_if_due()
        if monotonic() >= self._work_due_s and not self._has_more(step_s * _STEP_SHARE):
            self._work_due_s = inf
            keep_freed_memory()
            gc.freeze()  # otherwise a full collection traverses all objects: 50 ms in the middle of a step

    def _has_more(self, seconds: float) -> bool:
        """Works for about `seconds`. Returns whether work is left. Imports (0.4 s) need an idle core."""
        end_s = monotonic() + seconds
        for _ in self._preparation:
            if monotonic() >= end_s:
                return True
        return self._core.has_work or self._imports.restore()
