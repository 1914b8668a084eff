"""Spans of a start, and its critical path: the spans that delayed it. A span is one phase in one process."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Final

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


class _Walk:
    """Follows the critical path back in time. The position is a time, and the process waited for then."""

    def __init__(self, lanes: Mapping[str, Sequence[PhaseSpan]], begin_ns: int, end_ns: int) -> None:
        self._lanes = lanes
        self._begin_ns = begin_ns
        self.time_ns = end_ns
        self._process = API
        self._seen_now: set[str] = set()
        """The processes visited at this time, because two of them may wait for each other."""
        self.pieces: list[PhaseSpan] = []

    def step(self) -> None:
        """Covers the time before the position by a span, or changes to another process."""
        segment = self._last_of(self._process)
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
            self._explain(before.name, FORKSERVER, before.end_ns)
            if self._change_to(FORKSERVER):
                return
        if not self._change_to(API):
            self._explain(UNEXPLAINED, API, self._begin_ns)

    def _forked_after(self) -> PhaseSpan | None:
        """The forkserver's last work before this time. None if the API process was idle at this time."""
        api = self._busy_after(API, self.time_ns - 1)
        if api is None or api.waits_for is not None:
            return None
        return self._busy_after(FORKSERVER, self.time_ns - _START_TIME_NS)

    def _follow(self, segment: PhaseSpan) -> None:
        target = segment.waits_for
        busy = self._busy_after(target, segment.begin_ns) if target else None
        if target is not None and busy is not None:
            self._explain(segment.name, self._process, busy.end_ns)
            if self._change_to(target):
                return
        self._explain(segment.name, self._process, segment.begin_ns)

    def _cross_gap(self, before: PhaseSpan) -> None:
        if self.time_ns - before.end_ns < _SHORT_GAP_NS:
            self._explain(before.name, self._process, before.end_ns)
        elif self._process == API:
            self._explain_api_gap(before.end_ns)
        else:
            self._find_cause(before.end_ns)

    def _explain_api_gap(self, gap_begin_ns: int) -> None:
        """Explains a gap in the API process's spans by another process's work during the gap, if any."""
        busy = {name: found for name in self._lanes if (found := self._busy_after(name, gap_begin_ns))}
        working = [name for name in sorted(busy) if name != API and busy[name].waits_for is None]
        if not working:
            self._explain(UNEXPLAINED, API, gap_begin_ns)
            return
        latest = max(working, key=lambda name: busy[name].end_ns)
        segment = busy[latest]
        self._explain(UNEXPLAINED, API, segment.end_ns)
        self._explain(segment.name, latest, max(segment.begin_ns, gap_begin_ns))

    def _find_cause(self, gap_begin_ns: int) -> None:
        """Covers a gap between a child's spans by work that the API process finished then, if any."""
        ends = [s.end_ns for s in self._lanes.get(API, ()) if s.waits_for != self._process]
        finished_ns = max((end_ns for end_ns in ends if end_ns <= self.time_ns), default=gap_begin_ns)
        if finished_ns > gap_begin_ns:
            self._explain(UNEXPLAINED, self._process, finished_ns)
            if self._change_to(API):
                return
        self._explain(UNEXPLAINED, self._process, gap_begin_ns)

    def _busy_after(self, process: str, time_ns: int) -> PhaseSpan | None:
        segment = self._last_of(process)
        return segment if segment and segment.end_ns > time_ns else None

    def _last_of(self, process: str) -> PhaseSpan | None:
        """The last segment of a process that begins before the position."""
        lane = self._lanes.get(process, ())
        index = bisect_left(lane, self.time_ns, key=lambda segment: segment.begin_ns)
        return lane[index - 1] if index else None

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


def _build_lanes(spans: Iterable[PhaseSpan], begin_ns: int, end_ns: int) -> dict[str, list[PhaseSpan]]:
    by_process: dict[str, list[PhaseSpan]] = {}
    for span in spans:
        begin, end = max(span.begin_ns, begin_ns), min(span.end_ns, end_ns)
        if begin < end and span.process not in BACKGROUND:
            by_process.setdefault(span.process, []).append(replace(span, begin_ns=begin, end_ns=end))
    return {process: list(_segments(members)) for process, members in by_process.items()}


def _segments(spans: Sequence[PhaseSpan]) -> Iterator[PhaseSpan]:
    """Yields the parts of one process's spans during which no inner span runs, in order of time."""
    times = sorted({time for span in spans for time in (span.begin_ns, span.end_ns)})
    for begin, end in pairwise(times):
        covering = [span for span in spans if span.begin_ns <= begin and span.end_ns >= end]
        if covering:
            innermost = max(covering, key=lambda span: (span.begin_ns, -span.end_ns))
            yield replace(innermost, begin_ns=begin, end_ns=end)


def _merge(pieces: Iterable[PhaseSpan]) -> list[PhaseSpan]:
    runs = (list(run) for _, run in groupby(pieces, key=lambda piece: piece.key))
    return [replace(run[0], end_ns=run[-1].end_ns) for run in runs]
