"""The phases of a start as a table of plain text: one line each, with its share of the total as a number and a bar."""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

_BAR_WIDTH: Final = 24
_LEAST_SHARE: Final = 0.01
"""What runs beside the critical path and takes less than this is not worth a line."""
_HEADER: Final = "     at s   took s  share  process     phase"


class Stretch(NamedTuple):
    """A piece of a start, in seconds since it began."""

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
    """A phase with all its stretches added up."""

    process: str
    name: str
    begin_s: float
    """When it began for the first time."""
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
    bar = "#" * (max(1, round(phase.share * _BAR_WIDTH)) if phase.share >= _LEAST_SHARE else 0)
    figures = f"{phase.begin_s:9.3f}{phase.took_s:9.3f}{phase.share:7.1%}"
    return f"{figures}  {phase.process:<10}  {phase.name:<24}  {bar}".rstrip()


def _find_hidden(phases: list[PhaseTotal], spans: Iterable[Stretch]) -> list[Stretch]:
    """Spans that ran, wholly or for their greater part, while the start waited for something else."""
    shown_s = {phase.key: phase.took_s for phase in phases}
    least_s = _LEAST_SHARE * sum(shown_s.values())
    hidden = [span for span in spans if span.took_s - 2 * shown_s.get(span.key, 0.0) >= least_s]
    return sorted(hidden, key=lambda span: span.begin_s)
