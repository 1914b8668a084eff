"""The phases of a start as a text table: one line each, with its share of the total as a number and a bar."""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

_BAR_WIDTH: Final = 24
_MIN_SHARE: Final = 0.01
"""Spans beside the critical path with a smaller share of the total are left out."""
_HEADER: Final = "     at s   took s  share  process     phase"


class Stretch(NamedTuple):
    """A span, or a piece of the critical path, in seconds since the start began."""

    process: str
    name: str
    begin_s: float
    end_s: float

    @property
    def took_s(self) -> float:
        return self.end_s - self.begin_s

    @property
    def key(self) -> str:
        """The phase's name across processes and starts."""
        return f"{self.process}:{self.name}"


class PhaseTotal(NamedTuple):
    """The sum of all stretches of a phase."""

    process: str
    name: str
    begin_s: float
    """The first begin."""
    took_s: float
    share: float
    """Of the whole start, 0 to 1."""

    @property
    def key(self) -> str:
        """The phase's name across processes and starts."""
        return f"{self.process}:{self.name}"


def sum_phases(path: Sequence[Stretch]) -> list[PhaseTotal]:
    """One total for each process and name, in order of begin; the shares of a critical path add up to 1."""
    total_s = sum(stretch.took_s for stretch in path)
    totals: dict[str, PhaseTotal] = {}
    for stretch in path:
        earlier = totals.get(stretch.key)
        begin_s = earlier.begin_s if earlier else stretch.begin_s
        took_s = stretch.took_s + (earlier.took_s if earlier else 0.0)
        share = took_s / total_s if total_s else 0.0
        totals[stretch.key] = PhaseTotal(stretch.process, stretch.name, begin_s, took_s, share)
    return list(totals.values())


def format_phases(path: Sequence[Stretch], spans: Iterable[Stretch] = ()) -> str:
    """The critical path with bars, then the spans that ran beside it without delaying the start."""
    phases = sum_phases(path)
    lines = [_HEADER, *map(_format_phase, phases)]
    hidden = _find_hidden(phases, spans)
    if hidden:
        lines.append("meanwhile, without delaying the start:")
        lines += [f"{s.begin_s:9.3f}{s.took_s:9.3f}         {s.process:<10}  {s.name}" for s in hidden]
    return "\n".join(lines)


def _format_phase(phase: PhaseTotal) -> str:
    bar = "#" * (max(1, round(phase.share * _BAR_WIDTH)) if phase.share >= _MIN_SHARE else 0)
    figures = f"{phase.begin_s:9.3f}{phase.took_s:9.3f}{phase.share:7.1%}"
    return f"{figures}  {phase.process:<10}  {phase.name:<24}  {bar}".rstrip()


def _find_hidden(phases: list[PhaseTotal], spans: Iterable[Stretch]) -> list[Stretch]:
    """Spans of which more than half ran while the start waited for something else."""
    shown_s = {phase.key: phase.took_s for phase in phases}
    least_s = _MIN_SHARE * sum(shown_s.values())
    hidden = [span for span in spans if span.took_s - 2 * shown_s.get(span.key, 0.0) >= least_s]
    return sorted(hidden, key=lambda span: span.begin_s)
