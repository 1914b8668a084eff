"""Spans of a start, and its critical path: the spans that delayed it. A span is one phase in one process."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

API: Final = "api"
"""The process that the user started. All other processes are its children."""

FORKSERVER: Final = "forkserver"
"""The process that imports modules and then forks engine and workers."""

BACKGROUND: Final = frozenset({"prefetch"})
"""Processes that no other process waits for."""

UNEXPLAINED: Final = "unexplained"
"""The name for time that no span covers."""

_SHORT_GAP_NS: Final = 200_000
"""A gap that is shorter than this lies only between two spans. It is counted as part of the earlier span."""

_START_TIME_NS: Final = 20_000_000
"""A first span may begin this much too early, because the kernel reports starts in ticks of 10 ms."""


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
    """A span, or a piece of the critical path, in seconds since the begin of the start."""

    begin_s: float
    end_s: float
    waits_for: str | None = None
    """The process that this span only waits for. None if the span contains work."""

    def __post_init__(self) -> None:
        if not 0 <= self.begin_s <= self.end_s:
            raise ValueError(f"{self.key} cannot last from {self.begin_s:g} s to {self.end_s:g} s")

    @property
    def took_s(self) -> float:
        return self.end_s - self.begin_s


@dataclass(frozen=True)
class PhaseTotal(Phase):
    """The total time of all stretches of a phase."""

    begin_s: float
    took_s: float
    share: float
    """The share of the whole start, 0 to 1."""


def sum_phases(path: Sequence[Stretch]) -> list[PhaseTotal]:
    """One total for each phase, in the order of their begin. The shares of a critical path add up to 1."""
    total_s = sum(stretch.took_s for stretch in path)
    totals: dict[str, PhaseTotal] = {}
    for stretch in path:
        earlier = totals.get(stretch.key)
        begin_s = earlier.begin_s if earlier else stretch.begin_s
        took_s = stretch.took_s + (earlier.took_s if earlier else 0.0)
        share = took_s / total_s if total_s else 0.0
        totals[stretch.key] = PhaseTotal(stretch.process, stretch.name, begin_s, took_s, share)
    return list(totals.values())


def find_critical_path(spans: Iterable[PhaseSpan], *, begin_ns: int, end_ns: int) -> list[PhaseSpan]:
    """The spans that cover `begin_ns` to `end_ns`, in order. Gaps become spans named `unexplained`."""
    walk = _Walk(_build_lanes(spans, begin_ns, end_ns), begin_ns, end_ns)
    while walk.time_ns > begin_ns:
        walk.step()
    return _merge(reversed(walk.pieces))


class _Segment(NamedTuple):
    """A part of a span during which no inner span of the same process runs."""

    begin_ns: int
    end_ns: int
    span: PhaseSpan


class _Lane:
    """The innermost spans of one process, in order of time."""

    def __init__(self, spans: list[PhaseSpan]) -> None:
        times = sorted({time for span in spans for time in (span.begin_ns, span.end_ns)})
        self.segments: list[_Segment] = []
        for begin, end in pairwise(times):
            covering = [span for span in spans if span.begin_ns <= begin and span.end_ns >= end]
            if covering:
                self.segments.append(_Segment(begin, end, max(covering, key=lambda s: (s.begin_ns, -s.end_ns))))
        self._begins = [segment.begin_ns for segment in self.segments]

    def last_before(self, time_ns: int) -> _Segment | None:
        index = bisect_left(self._begins, time_ns)
        return self.segments[index - 1] if index else None

    def last_finished_before(self, time_ns: int, *, except_waits_for: str) -> _Segment | None:
        """The last segment that ended before a time, except segments that wait for `except_waits_for`."""
        over = (s for s in reversed(self.segments) if s.end_ns <= time_ns and s.span.waits_for != except_waits_for)
        return next(over, None)


class _Walk:
    """Follows the critical path back in time. The position is a time, and the process waited for then."""

    def __init__(self, lanes: dict[str, _Lane], begin_ns: int, end_ns: int) -> None:
        self._lanes = lanes
        self._begin_ns = begin_ns
        self.time_ns = end_ns
        self._process = API
        self._seen_now: set[str] = set()
        """The processes visited at this time, because two of them may wait for each other."""
        self.pieces: list[PhaseSpan] = []

    def step(self) -> None:
        """Covers the time before the position by a span, or changes to another process."""
        lane = self._lanes.get(self._process)
        segment = lane.last_before(self.time_ns) if lane else None
        if segment is None:
            self._leave_first_span()
        elif segment.end_ns < self.time_ns:
            self._cross_gap(segment)
        else:
            self._follow(segment)

    def _leave_first_span(self) -> None:
        """Changes to the parent of a process that had not begun before its first span.

        The parent is the API process. If the API process requested the process early and did not wait, the
        process began when the forkserver had finished its imports. In this case, the path continues in the
        forkserver.
        """
        if self._process != FORKSERVER and (before := self._forked_after()) is not None:
            self._explain(before.span.name, FORKSERVER, before.end_ns)
            if self._change_to(FORKSERVER):
                return
        if not self._change_to(API):
            self._explain(UNEXPLAINED, API, self._begin_ns)

    def _forked_after(self) -> _Segment | None:
        """The forkserver's last work before this time. None if the API process was idle at this time."""
        api = self._busy_after(API, self.time_ns - 1)
        if api is None or api.span.waits_for is not None:
            return None
        return self._busy_after(FORKSERVER, self.time_ns - _START_TIME_NS)

    def _follow(self, segment: _Segment) -> None:
        target = segment.span.waits_for
        busy = self._busy_after(target, segment.begin_ns) if target else None
        if target is not None and busy is not None:
            self._explain(segment.span.name, self._process, busy.end_ns)
            if self._change_to(target):
                return
        self._explain(segment.span.name, self._process, segment.begin_ns)

    def _cross_gap(self, before: _Segment) -> None:
        if self.time_ns - before.end_ns < _SHORT_GAP_NS:
            self._explain(before.span.name, self._process, before.end_ns)
        elif self._process == API:
            self._explain_api_gap(before.end_ns)
        else:
            self._find_cause(before.end_ns)

    def _explain_api_gap(self, gap_begin_ns: int) -> None:
        """Explains a gap in the API process's spans by another process's work during the gap, if any."""
        busy = {name: found for name in self._lanes if (found := self._busy_after(name, gap_begin_ns))}
        working = [name for name in sorted(busy) if name != API and busy[name].span.waits_for is None]
        if not working:
            self._explain(UNEXPLAINED, API, gap_begin_ns)
            return
        latest = max(working, key=lambda name: busy[name].end_ns)
        segment = busy[latest]
        self._explain(UNEXPLAINED, API, segment.end_ns)
        self._explain(segment.span.name, latest, max(segment.begin_ns, gap_begin_ns))

    def _find_cause(self, gap_begin_ns: int) -> None:
        """Covers a gap between a child's spans by work that the API process finished then, if any."""
        api = self._lanes.get(API)
        finished = api.last_finished_before(self.time_ns, except_waits_for=self._process) if api else None
        if finished is not None and finished.end_ns > gap_begin_ns:
            self._explain(UNEXPLAINED, self._process, finished.end_ns)
            if self._change_to(API):
                return
        self._explain(UNEXPLAINED, self._process, gap_begin_ns)

    def _busy_after(self, process: str, time_ns: int) -> _Segment | None:
        lane = self._lanes.get(process)
        segment = lane.last_before(self.time_ns) if lane else None
        return segment if segment and segment.end_ns > time_ns else None

    def _change_to(self, process: str) -> bool:
        self._seen_now.add(self._process)
        if process in self._seen_now:
            return False
        self._process = process
        return True

    def _explain(self, name: str, process: str, since_ns: int) -> None:
        if since_ns < self.time_ns:
            self.pieces.append(PhaseSpan(process, name, since_ns, self.time_ns))
            self.time_ns = since_ns
            self._seen_now.clear()


def _build_lanes(spans: Iterable[PhaseSpan], begin_ns: int, end_ns: int) -> dict[str, _Lane]:
    by_process: dict[str, list[PhaseSpan]] = {}
    for span in spans:
        begin, end = max(span.begin_ns, begin_ns), min(span.end_ns, end_ns)
        if begin < end and span.process not in BACKGROUND:
            clipped = PhaseSpan(span.process, span.name, begin, end, span.waits_for)
            by_process.setdefault(span.process, []).append(clipped)
    return {process: _Lane(members) for process, members in by_process.items()}


def _merge(pieces: Iterable[PhaseSpan]) -> list[PhaseSpan]:
    merged: list[PhaseSpan] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if last and (last.process, last.name) == (piece.process, piece.name):
            merged[-1] = PhaseSpan(last.process, last.name, last.begin_ns, piece.end_ns)
        else:
            merged.append(piece)
    return merged
