"""The timeline of a start has its phases as spans. Its origin is the kernel's start of this process."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from base.machine.processes import process_start_ns
from startup import start_origin

API: Final = "api"
"""The process that the user started. All other processes are its children."""

FORKSERVER: Final = "forkserver"
"""The process that imports modules and then forks engine and workers."""


@dataclass(frozen=True)
class Phase:
    """A phase of one process."""

    process: str
    """`api`, `engine`, `forkserver` or `prefetch`."""
    name: str

    @property
    def key(self) -> str:
        """Identifies the phase in every start. The same phase of two processes has two keys."""
        return f"{self.process}:{self.name}"


@dataclass(frozen=True)
class PhaseSpan(Phase):
    """A span in monotonic nanoseconds, which all processes share."""

    begin_ns: int
    end_ns: int
    waits_for: str | None = None
    """The process that this span only waits for. None if the span contains work."""


@dataclass(frozen=True)
class Stretch(Phase):
    """A span in seconds since the begin of the start."""

    begin_s: float
    end_s: float
    waits_for: str | None = None
    """The process that this span only waits for. None if the span contains work."""

    @property
    def took_s(self) -> float:
        return self.end_s - self.begin_s


@dataclass(frozen=True)
class PhaseTotal(Phase):
    """The total time of all spans of a phase."""

    begin_s: float
    took_s: float
    share: float
    """The share of the whole start, 0 to 1."""


def sum_phases(spans: Iterable[Stretch], total_s: float) -> list[PhaseTotal]:
    """One total for each phase with work. `spans` are in the order of their begin. Phases may overlap."""
    totals: dict[str, PhaseTotal] = {}
    for span in spans:
        if span.waits_for is not None:
            continue
        earlier = totals.get(span.key)
        begin_s = earlier.begin_s if earlier else span.begin_s
        took_s = span.took_s + (earlier.took_s if earlier else 0.0)
        share = took_s / total_s if total_s else 0.0
        totals[span.key] = PhaseTotal(span.process, span.name, begin_s, took_s, share)
    return list(totals.values())


_NS = 1_000_000_000


class PhaseTimeline:
    """Collects spans in monotonic nanoseconds. The API process owns it, and adds other processes' spans.

    Only one thread writes. Any thread may read while the start runs.
    """

    def __init__(self, origin_ns: int) -> None:
        self.origin_ns = origin_ns
        self.spans: list[PhaseSpan] = []
        self.marks: dict[str, int] = {}
        """Name of a moment, such as `listening` -> monotonic nanoseconds."""
        self.end_ns: int | None = None
        """When the start ended. None while it runs."""
        self.on_change: Callable[[], None] = lambda: None
        """Called after every change, on the thread that made the change."""
        self._open: tuple[PhaseSpan, ...] = ()

    @classmethod
    def from_process_start(cls) -> "PhaseTimeline":
        """A timeline from the kernel's start of this process, with a span for the interpreter's start."""
        now = time.monotonic_ns()
        warm = start_origin.warm
        if warm is None:
            timeline = cls(process_start_ns())
            timeline.add(API, [("interpreter_and_cli", timeline.origin_ns, now)])
            return timeline
        timeline = cls(warm.front_begin_ns)
        interpreter = ("interpreter", warm.front_begin_ns, warm.request_ns)
        fork = ("fork_from_standby", warm.request_ns, warm.forked_ns)
        timeline.add(API, [interpreter, fork, ("cli", warm.forked_ns, now)])
        return timeline

    @contextmanager
    def span(self, name: str, *, waits_for: str | None = None) -> Iterator[None]:
        """Records the block as a span, even if it raises. `waits_for`: the process it waits for, if any."""
        begin = time.monotonic_ns()
        opened = PhaseSpan(API, name, begin, begin, waits_for)
        self._open = (*self._open, opened)
        self.on_change()
        try:
            yield
        finally:
            self.spans.append(PhaseSpan(API, name, begin, time.monotonic_ns(), waits_for))
            self._open = tuple(span for span in self._open if span is not opened)
            self.on_change()

    def add(self, process: str, spans: Iterable[tuple[str, int, int]]) -> None:
        """Adds finished spans of a process on this machine.

        If another process reports a span, its name contains its process, as in `forkserver:preload_imports`.
        """
        for name, begin_ns, end_ns in spans:
            owner, _, phase = name.rpartition(":")
            self.spans.append(PhaseSpan(owner or process, phase, begin_ns, end_ns))
        self.on_change()

    def add_spans(self, spans: Iterable[PhaseSpan]) -> None:
        self.spans.extend(spans)
        self.on_change()

    def mark(self, name: str) -> None:
        """Records the present time under a name, unless the name has been used."""
        self.marks.setdefault(name, time.monotonic_ns())
        self.on_change()

    def finish(self) -> None:
        self.end_ns = self.end_ns or time.monotonic_ns()
        self.on_change()

    @property
    def content(self) -> tuple[Any, ...]:
        """All spans, marks and the end, for the copy in another process. All processes use the same clock."""
        return self.spans, self._open, self.marks, self.end_ns

    @content.setter
    def content(self, content: tuple[Any, ...]) -> None:
        self.spans, self._open, self.marks, self.end_ns = content

    @property
    def running(self) -> PhaseSpan | None:
        """The current phase, as a span without an end. None between two phases."""
        return self._open[-1] if self._open else None

    @property
    def spans_so_far(self) -> list[PhaseSpan]:
        """The finished spans, and the running spans with the present time as their end."""
        now = time.monotonic_ns()
        running = [] if self.end_ns else self._open
        return [*self.spans, *(replace(span, end_ns=now) for span in running)]

    def offset_s(self, time_ns: int) -> float:
        """The seconds from the origin to a monotonic time."""
        return (time_ns - self.origin_ns) / _NS

    @property
    def elapsed_s(self) -> float:
        """Seconds from the origin to the end of the start, or to the present time."""
        return self.offset_s(self.end_ns or time.monotonic_ns())

    def stretch(self, span: PhaseSpan) -> Stretch:
        begin_s, end_s = self.offset_s(span.begin_ns), self.offset_s(span.end_ns)
        return Stretch(span.process, span.name, begin_s, end_s, span.waits_for)
