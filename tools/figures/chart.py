"""Draws README's chart of the phases of starts: stacked horizontal bars, for light and dark pages."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from statistics import median
from typing import Any, Final, NamedTuple

from tools.figures.record import Figures, Measured
from tools.figures.rows import conditions_of, is_of_gpu, machine_of
from vllm_cli.bench.phases import PHASES, median_phases

_WIDTH: Final = 760
_MARGIN: Final = 20
_LEFT: Final = 225
"""The horizontal position at which bars begin. Labels end before it."""
_RIGHT: Final = 670
"""The horizontal position at which the longest bar of a group ends. Its total follows."""
_BAR: Final = 18
_STEP: Final = 28
_TITLE: Final = 26
_LEGEND: Final = 20
_LETTER: Final = 7.4
"""The mean width of a letter in the legend."""
_COLORS: Final = dict(
    zip(
        PHASES,
        ("#2f6fb5", "#8a929b", "#6ba3dc", "#a9cdf0", "#3f9b63", "#e08a2c", "#c6504f", "#8763b8", "#2fa5a0"),
        strict=True,
    )
)
_STYLE: Final = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
text.title { font-weight: 600; }
text.note { font-size: 11px; fill: #59636e; }
.page { fill: #ffffff; stroke: #d1d9e0; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  text.note { fill: #9198a1; }
  .page { fill: #0d1117; stroke: #3d444d; }
}
"""


class Bar(NamedTuple):
    """The label of a bar, and phase -> seconds."""

    label: str
    phases_s: Mapping[str, float]

    @property
    def total_s(self) -> float:
        """The sum of the phases. `fsum` gives the same with each Python, but `sum` does not since 3.12."""
        return math.fsum(self.phases_s.values())


class Group(NamedTuple):
    """Starts that are compared with each other. The group has its own axis."""

    title: str
    bars: Sequence[Bar]


class _Group(NamedTuple):
    """The steps of a group: starts of vllm-cli and of its peer, and starts of vllm-cli beside a standby."""

    peer: str
    step: str
    warm_step: str = ""
    case: str = ""
    """The name of the starts in a step that has several cases."""
    warm_case: str = ""


_GROUPS: Final = {
    "vLLM on a GPU, default (compiled), 135 million parameters": _Group(
        "vllm serve", "GPU, compiled", "GPU, compiled", "compiled, later", "compiled, beside a standby"
    ),
    "vLLM on a GPU, --enforce-eager": _Group(
        "vllm serve", "GPU, eager", "GPU, eager", "eager, later", "eager, beside a standby"
    ),
    "vLLM for CPU, --enforce-eager": _Group("vllm serve", "start, eager", "warm start, eager"),
    "vLLM for CPU, --enforce-eager, 1.5 billion parameters": _Group(
        "vllm serve", "start, eager, 1.5 billion parameters"
    ),
    "Embedded engine, 135 million parameters": _Group("transformers serve", "start, embedded", "warm start, embedded"),
}
_NOTES: Final = (
    "Time from exec to the first token; medians of alternating rounds",
    "On the GPU and by transformers serve, phases before the server answers were not recorded",
)


def draw_chart(figures: Figures) -> str:
    """The chart as SVG: starts of one machine with a GPU, then of one without. It shows what was measured."""
    steps = {step for group in _GROUPS.values() for step in (group.step, group.warm_step)}
    machines = {machine_of(figures, (step for step in steps if is_of_gpu(step) is kind)) for kind in (True, False)}
    runs = {step: run for step in sorted(steps) for run in figures.runs_of(step) if run.machine in machines}
    groups = [Group(title, bars) for title, group in _GROUPS.items() if (bars := list(_bars(runs, group)))]
    where = sorted({f"machine {run.machine}, {run.cores} cores, {run.date}" for run in runs.values()})
    return draw_phases(groups, notes=[*_NOTES, "; ".join(where)])


def _bars(runs: Mapping[str, Measured], group: _Group) -> Iterator[Bar]:
    for label, step, case, side in (
        (group.peer, group.step, group.case, 1),
        ("vllm-cli", group.step, group.case, 0),
        ("vllm-cli beside a standby", group.warm_step, group.warm_case, 0),
    ):
        if step in runs:
            found = conditions_of(runs[step].result, side)
            yield Bar(label, divide_median(found[case] if case else next(iter(found.values()))))


def divide_median(rounds: list[Mapping[str, Any]]) -> dict[str, float]:
    """Divides the median time to the first token into phases, in proportion to the phases' medians.

    If the rounds have no phases, the phase `server` has all of the time until the server is healthy.
    """
    total_s = median(each["first_token_s"] for each in rounds)
    known = [each for each in rounds if each.get("phases_s")]
    if known:
        phases_s = median_phases(known)
    else:
        healthy_s = median(each["healthy_s"] for each in rounds)
        phases_s = {"server": healthy_s, "first token": total_s - healthy_s}
    scale = total_s / math.fsum(phases_s.values())
    return {name: seconds * scale for name, seconds in phases_s.items() if seconds}


def draw_phases(groups: Sequence[Group], *, notes: Sequence[str] = ()) -> str:
    """Returns the SVG. `notes` are lines of small text below the legend."""
    drawing = _Drawing()
    for group in groups:
        drawing.add_group(group.title, group.bars)
    bars = [bar for group in groups for bar in group.bars]
    drawing.add_legend({name for bar in bars for name, seconds in bar.phases_s.items() if seconds})
    for note in notes:
        drawing.add_note(note)
    return drawing.finish(_describe(groups))


class _Drawing:
    """Collects the elements of the picture from top to bottom."""

    def __init__(self) -> None:
        self._elements: list[str] = []
        self._y = 8.0

    def add_group(self, title: str, bars: Sequence[Bar]) -> None:
        """Adds the title and the bars. The longest bar has the same length in each group."""
        self._y += _TITLE
        self._text(_MARGIN, title, "title")
        self._y += 10
        scale = (_RIGHT - _LEFT) / max(bar.total_s for bar in bars)
        for bar in bars:
            self._bar(bar, scale)

    def add_legend(self, names: set[str]) -> None:
        """Adds the colors of the phases that occur in a bar."""
        x, self._y = float(_MARGIN), self._y + _LEGEND
        for name in (each for each in PHASES if each in names):
            width = 18 + len(name) * _LETTER + 14
            if x + width > _WIDTH - _MARGIN:
                x, self._y = float(_MARGIN), self._y + _LEGEND
            self._rect(x, self._y - 10, 12, 12, name)
            self._text(x + 18, name)
            x += width

    def add_note(self, text: str) -> None:
        self._y += 18
        self._text(_MARGIN, text, "note")

    def finish(self, description: str) -> str:
        """Returns the SVG file. `description` is for readers who cannot see the picture."""
        height = round(self._y + 16)
        size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(description)}">'
            f"<style>{_STYLE}</style>\n"
            f'<rect class="page" x=".5" y=".5" width="{_WIDTH - 1}" height="{height - 1}" rx="6"/>\n'
            + "\n".join(self._elements)
            + "\n</svg>\n"
        )

    def _bar(self, bar: Bar, scale: float) -> None:
        top, x = self._y + (_STEP - _BAR) / 2, float(_LEFT)
        for name in PHASES:
            seconds = bar.phases_s.get(name, 0.0)
            if seconds > 0:
                self._rect(x, top, seconds * scale, _BAR, name, f"{name} {format_seconds(seconds)}")
                x += seconds * scale
        self._y += _STEP
        middle = self._y - _STEP / 2 + 4
        self._text(_LEFT - 10, bar.label, anchor="end", y=middle)
        self._text(x + 8, format_seconds(bar.total_s), y=middle)

    def _rect(self, x: float, y: float, width: float, height: float, phase: str, tip: str = "") -> None:
        box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" fill="{_COLORS[phase]}"'
        self._elements.append(f"<rect {box}><title>{escape(tip)}</title></rect>" if tip else f"<rect {box}/>")

    def _text(self, x: float, text: str, kind: str = "", *, anchor: str = "start", y: float | None = None) -> None:
        place = f'x="{x:.1f}" y="{self._y if y is None else y:.1f}"'
        styles = f' class="{kind}"' if kind else ""
        self._elements.append(f'<text {place} text-anchor="{anchor}"{styles}>{escape(text)}</text>')


def format_seconds(seconds: float) -> str:
    """The seconds with about three digits."""
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s"


def _describe(groups: Sequence[Group]) -> str:
    """A text with all totals."""
    parts = [
        f"{group.title}: " + ", ".join(f"{bar.label} {format_seconds(bar.total_s)}" for bar in group.bars)
        for group in groups
    ]
    return "Time from exec to the first token by phase. " + "; ".join(parts)
