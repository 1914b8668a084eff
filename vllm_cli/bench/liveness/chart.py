"""Charts of `bench liveness`: the latency of `/health` over time."""

from collections.abc import Iterator
from html import escape

from vllm_cli.bench.liveness.results import LivenessFigures, LivenessResult
from vllm_cli.chart_axes import LogAxis, TimeAxis
from vllm_cli.html_page import draw_key, draw_text, pick_colour

_WIDTH = 900
_LEFT, _RIGHT = 70, 20
_TOP, _PLOT = 30, 240
_STRIP = 8
"""Height of the bar that shows the time of a side's load."""
_AXIS = 22
_LEAST_MS = 0.1


def draw_kinds(result: LivenessResult) -> Iterator[str]:
    """A legend, then a chart for each kind of load."""
    keys = "&emsp;".join(draw_key(pick_colour(index), side.name) for index, side in enumerate(result.sides))
    yield f"<p>{keys}; one line per round: the slowest answers of /health over time; bars: the time of the load.</p>"
    yield from (_draw_kind(result, index) for index in range(len(result.settings.kinds)))


def _draw_kind(result: LivenessResult, index: int) -> str:
    """The chart of one kind of load with all rounds of all sides; empty if no probe was answered."""
    sides = [side.conditions[index].rounds for side in result.sides]
    points = [point for rounds in sides for figures in rounds for point in figures.health_over_time]
    if not points:
        return ""
    kind = result.settings.kinds[index]
    longest_s = max([figures.load_end_s for rounds in sides for figures in rounds] + [point.at_s for point in points])
    time_axis = TimeAxis(longest_s, _LEFT, _WIDTH - _LEFT - _RIGHT)
    bottom = _TOP + _PLOT
    ms_axis = LogAxis.around(_LEAST_MS, max(point.max_ms for point in points), top=_TOP, bottom=bottom)
    end = bottom + _STRIP * len(sides)
    curves = [
        _draw_curve(figures, pick_colour(side), time_axis, ms_axis)
        for side, rounds in enumerate(sides)
        for figures in rounds
    ]
    strips = [_draw_strips(rounds, side, bottom + _STRIP * side, time_axis) for side, rounds in enumerate(sides)]
    title = f"{kind.kind}, {kind.concurrency} at once"
    frame = f'viewBox="0 0 {_WIDTH} {end + _AXIS}" width="{_WIDTH}" role="img" aria-label="{escape(title)}"'
    axes = time_axis.draw(_TOP, end) + ms_axis.draw(_LEFT, _WIDTH - _RIGHT, "ms")
    return f"<svg {frame}>{draw_text(0, 16, title, kind='title')}{axes}{''.join([*strips, *curves])}</svg>"


def _draw_curve(figures: LivenessFigures, colour: str, time_axis: TimeAxis, ms_axis: LogAxis) -> str:
    points = " ".join(
        f"{time_axis.x(point.at_s):.1f},{ms_axis.y(point.max_ms):.1f}" for point in figures.health_over_time
    )
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-opacity=".75"/>'


def _draw_strips(rounds: list[LivenessFigures], side: int, top: float, time_axis: TimeAxis) -> str:
    """The time of the load: all rounds over one another, so that their common time is the darkest."""

    def draw_strips() -> Iterator[str]:
        for figures in rounds:
            left, right = time_axis.x(figures.load_begin_s), time_axis.x(figures.load_end_s)
            box = f'x="{left:.1f}" y="{top + 2}" width="{right - left:.1f}" height="{_STRIP - 2}"'
            yield f'<rect {box} fill="{pick_colour(side)}" fill-opacity="{0.9 / len(rounds):.2f}"/>'

    return "".join(draw_strips())
