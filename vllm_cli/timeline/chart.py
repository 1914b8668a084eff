"""Draws one start as bars over time: the critical path on top, then every process with all its spans."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Final, NamedTuple

from startup.timeline.report import StartReport
from startup.timeline.spans import UNEXPLAINED, Stretch
from vllm_cli.chart_axes import TimeAxis
from vllm_cli.html_page import draw_text, pick_colour

WIDTH: Final = 960
_LEFT: Final = 110
_RIGHT: Final = 20
_ROW: Final = 22
_LANE_GAP: Final = 6
_TITLE: Final = 30
_AXIS: Final = 22
_LETTER: Final = 6.2
"""Approximate width of a letter: a name is written into its bar only if it fits."""
_UNEXPLAINED_COLOUR: Final = "#999999"
_FAINT: Final = 0.25
"""Opacity of a bar for a phase that only waits."""
_MIN_WIDTH: Final = 0.5


class PhaseColours:
    """One colour for each phase, the same in every chart of a page."""

    def __init__(self, reports: Sequence[StartReport]) -> None:
        stretches = [s for report in reports for s in (*report.critical_path, *report.spans)]
        keys = dict.fromkeys(s.key for s in stretches if s.name != UNEXPLAINED)
        self._colours = {key: pick_colour(index) for index, key in enumerate(keys)}

    def of(self, key: str) -> str:
        """The colour of a phase; grey for time without a span."""
        return self._colours.get(key, _UNEXPLAINED_COLOUR)


def draw_chart(report: StartReport, colours: PhaseColours, *, title: str, end_s: float) -> str:
    """An SVG chart whose time axis ends at `end_s`, so that two charts have the same scale."""
    axis = TimeAxis(end_s, _LEFT, WIDTH - _LEFT - _RIGHT)
    lanes = [_Lane("waited for", [list(report.critical_path)]), *_arrange(report.spans)]
    bottom = _TITLE + sum(lane.height for lane in lanes)
    parts = [draw_text(0, 16, title, kind="title"), axis.draw(_TITLE, bottom)]
    top = _TITLE
    for lane in lanes:
        parts += [draw_text(_LEFT - 8, top + 15, lane.name, anchor="end"), *lane.draw(top, axis, colours)]
        top += lane.height
    parts += [_draw_mark(name, axis.x(time_s), bottom) for name, time_s in report.marks.items()]
    frame = f'viewBox="0 0 {WIDTH} {bottom + _AXIS}" width="{WIDTH}" role="img" aria-label="{escape(title)}"'
    return f"<svg {frame}>{''.join(parts)}</svg>"


class _Lane(NamedTuple):
    """One process; overlapping bars are in different rows."""

    name: str
    rows: list[list[Stretch]]

    @property
    def height(self) -> int:
        return _ROW * len(self.rows) + _LANE_GAP

    def draw(self, top: float, axis: TimeAxis, colours: PhaseColours) -> Iterator[str]:
        for index, row in enumerate(self.rows):
            for stretch in row:
                opacity = _FAINT if stretch.waits_for else 1.0
                yield _draw_bar(stretch, top + index * _ROW, axis, colours.of(stretch.key), opacity)


def _arrange(spans: Iterable[Stretch]) -> list[_Lane]:
    lanes: dict[str, _Lane] = {}
    for span in sorted(spans, key=lambda span: (span.begin_s, -span.end_s)):
        rows = lanes.setdefault(span.process, _Lane(span.process, [])).rows
        free = next((row for row in rows if row[-1].end_s <= span.begin_s), None)
        if free is None:
            rows.append([span])
        else:
            free.append(span)
    return list(lanes.values())


def _draw_bar(stretch: Stretch, top: float, axis: TimeAxis, colour: str, opacity: float) -> str:
    left = axis.x(stretch.begin_s)
    width = max(axis.x(stretch.end_s) - left, _MIN_WIDTH)
    times = f"{stretch.took_s:.3f} s, from {stretch.begin_s:.3f} to {stretch.end_s:.3f} s"
    title = escape(f"{stretch.process}: {stretch.name}\n{times}")
    box = f'x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{_ROW - 3}" rx="2"'
    bar = f'<rect {box} fill="{colour}" fill-opacity="{opacity}"/>'
    return f"<g><title>{title}</title>{bar}{''.join(_write_name(stretch.name, left, top, width, opacity))}</g>"


def _write_name(name: str, left: float, top: float, width: float, opacity: float) -> Iterator[str]:
    if len(name) * _LETTER < width - 6:
        yield draw_text(left + 4, top + 14, name, kind="" if opacity == _FAINT else "in")


def _draw_mark(name: str, x: float, bottom: float) -> str:
    line = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TITLE - 4}" y2="{bottom}" stroke-dasharray="3 3"/>'
    return line + draw_text(x + 3, _TITLE - 2, name)
