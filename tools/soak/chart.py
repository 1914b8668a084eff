"""The result of the soak test as a self-contained HTML page: memory, files, threads, /health."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Final, NamedTuple

from tools.soak.linear_axis import LinearAxis
from tools.soak.report import build_soak_tables, describe_soak, describe_soak_verdict
from tools.soak.results import GroupSample, SoakResult, SoakSample
from tools.soak.trend import Point
from tools.soak.verdict import WHOLE_TREE
from vllm_cli.bench.log_axis import LogAxis
from vllm_cli.bench.tables import draw_figure_table
from vllm_cli.html_page import build_page, draw_key, draw_paragraph, draw_text, pick_colour
from vllm_cli.timeline.time_axis import TimeAxis

_WIDTH: Final = 900
_LEFT, _RIGHT = 80, 20
_TOP, _PLOT, _AXIS = 30, 200, 22
_MIB: Final = 1 << 20
_MIN_MS: Final = 0.1


class _Curve(NamedTuple):
    """One line of a panel."""

    who: str
    points: Sequence[Point]


def draw_soak_page(result: SoakResult) -> str:
    """The whole page."""
    names = list(dict.fromkeys([WHOLE_TREE, *(who for sample in result.samples for who in sample.groups)]))
    painter = _Painter(result, names)
    parts = [
        *map(draw_paragraph, describe_soak_verdict(result)),
        *map(draw_paragraph, describe_soak(result)),
        f"<p>{'&emsp;'.join(draw_key(pick_colour(index), name) for index, name in enumerate(names))}</p>",
        painter.draw_panel("RSS", "MiB", lambda group: group.rss_bytes / _MIB),
        painter.draw_growth("RSS relative to the begin of the judged load"),
        painter.draw_panel("Open files", "", lambda group: group.num_fds),
        painter.draw_panel("Threads", "", lambda group: group.num_threads),
        painter.draw_health("Slowest answers of /health"),
        *map(draw_figure_table, build_soak_tables(result)),
    ]
    return build_page("bench soak", parts)


class _Painter:
    """Draws all panels over the same time, with a vertical line at the begin of each stage."""

    def __init__(self, result: SoakResult, names: Sequence[str]) -> None:
        self._samples = result.samples
        self._health = result.health.over_time
        self._names = names
        self._time = TimeAxis(max(s.at_s for s in result.samples), _LEFT, _WIDTH - _LEFT - _RIGHT)

    def draw_panel(self, title: str, unit: str, take: Callable[[GroupSample], float]) -> str:
        """One figure of each role and of all processes together, from 0."""
        return self._draw(title, unit, [_Curve(name, self._points(name, take)) for name in self._names], least=0.0)

    def draw_growth(self, title: str) -> str:
        """Growth of the RSS in percent of its value at the begin of the judged load."""
        begin_s = next((sample.at_s for sample in self._samples if sample.stage == "load"), 0.0)
        curves = []
        for name in self._names:
            judged = [point for point in self._points(name, lambda group: group.rss_bytes) if point.at_s >= begin_s]
            first = judged[0].value if judged else 0
            if first:
                points = [Point(point.at_s, (point.value / first - 1) * 100) for point in judged]
                curves.append(_Curve(name, points))
        return self._draw(title, "%", curves)

    def draw_health(self, title: str) -> str:
        """Latency of /health; empty if no probe was answered."""
        if not self._health:
            return ""
        bottom = _TOP + _PLOT
        axis = LogAxis.around(_MIN_MS, max(point.max_ms for point in self._health), top=_TOP, bottom=bottom)
        places = [(point.at_s, axis.y(point.max_ms)) for point in self._health]
        line = self._draw_line(places, pick_colour(0))
        return self._frame(title, axis.draw(_LEFT, _WIDTH - _RIGHT, "ms") + line)

    def _points(self, name: str, take: Callable[[GroupSample], float]) -> list[Point]:
        groups = [(sample.at_s, _find_group(sample, name)) for sample in self._samples]
        return [Point(at_s, take(group)) for at_s, group in groups if group is not None]

    def _draw(self, title: str, unit: str, curves: Sequence[_Curve], least: float | None = None) -> str:
        values = [point.value for curve in curves for point in curve.points] or [0.0]
        low = min(values) if least is None else least
        axis = LinearAxis.around(low, max(values), top=_TOP, bottom=_TOP + _PLOT)
        lines = [
            self._draw_line(
                [(point.at_s, axis.y(point.value)) for point in curve.points],
                pick_colour(self._names.index(curve.who)),
            )
            for curve in curves
        ]
        return self._frame(title, axis.draw(_LEFT, _WIDTH - _RIGHT, unit) + "".join(lines))

    def _draw_line(self, places: Sequence[tuple[float, float]], colour: str) -> str:
        points = " ".join(f"{self._time.x(at_s):.1f},{y:.1f}" for at_s, y in places)
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'

    def _frame(self, title: str, content: str) -> str:
        bottom = _TOP + _PLOT
        frame = f'viewBox="0 0 {_WIDTH} {bottom + _AXIS}" width="{_WIDTH}" role="img" aria-label="{escape(title)}"'
        head = draw_text(0, 16, title, kind="title")
        return f"<svg {frame}>{head}{self._time.draw(_TOP, bottom)}{self._draw_stages(bottom)}{content}</svg>"

    def _draw_stages(self, bottom: float) -> str:
        begins = {sample.stage: sample.at_s for sample in reversed(self._samples)}
        return "".join(
            f'<line x1="{self._time.x(at_s):.1f}" x2="{self._time.x(at_s):.1f}" y1="{_TOP - 8}" y2="{bottom}" '
            f'stroke-dasharray="2 3"/>{draw_text(self._time.x(at_s) + 3, _TOP - 2, stage)}'
            for stage, at_s in begins.items()
        )


def _find_group(sample: SoakSample, name: str) -> GroupSample | None:
    return sample.tree if name == WHOLE_TREE else sample.groups.get(name)
