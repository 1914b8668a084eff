"""Charts of `bench startup`: the stages of each start up to its first token."""

from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from vllm_cli.bench.results import Spread
from vllm_cli.bench.startup.results import StartupResult, StateResult
from vllm_cli.chart_axes import TimeAxis
from vllm_cli.html_page import draw_key, draw_text, pick_colour

_WIDTH = 900
_LEFT, _RIGHT = 140, 60
_TITLE, _ROW, _AXIS = 30, 34, 22
_BAR = 18


class _Stage(NamedTuple):
    """A part of the bar, drawn from the end of the one before."""

    label: str
    figure: str
    per_s: float
    """How many of the figure's units are a second."""


_STAGES = (
    _Stage("until listening", "listening_ms", 1000.0),
    _Stage("until healthy", "healthy_s", 1.0),
    _Stage("until the first token", "first_token_s", 1.0),
)


def draw_states(result: StartupResult) -> Iterator[str]:
    """A legend, then a chart for each state."""
    keys = "&emsp;".join(draw_key(pick_colour(index), stage.label) for index, stage in enumerate(_STAGES))
    yield f"<p>{keys}; the line is the range of the first token's times.</p>"
    yield from (_draw_state(result, index) for index in range(len(result.settings.states)))


def _draw_state(result: StartupResult, index: int) -> str:
    longest = max(side.conditions[index].summary["first_token_s"].max for side in result.sides)
    axis = TimeAxis(longest, _LEFT, _WIDTH - _LEFT - _RIGHT)
    bottom = _TITLE + _ROW * len(result.sides)
    title = f"from {result.settings.states[index]}"
    rows = [
        draw_text(_LEFT - 8, _TITLE + _ROW * row + _BAR - 4, side.name, anchor="end")
        + _draw_side(side.conditions[index], _TITLE + _ROW * row, axis)
        for row, side in enumerate(result.sides)
    ]
    frame = f'viewBox="0 0 {_WIDTH} {bottom + _AXIS}" width="{_WIDTH}" role="img" aria-label="{escape(title)}"'
    return f"<svg {frame}>{draw_text(0, 16, title, kind='title')}{axis.draw(_TITLE, bottom)}{''.join(rows)}</svg>"


def _draw_side(state: StateResult, top: float, axis: TimeAxis) -> str:
    parts = []
    begin_s = 0.0
    for index, stage in enumerate(_STAGES):
        spread = state.summary.get(stage.figure)
        end_s = spread.median / stage.per_s if spread else begin_s
        if end_s > begin_s:
            box = f'x="{axis.x(begin_s):.1f}" y="{top}" width="{axis.x(end_s) - axis.x(begin_s):.1f}" height="{_BAR}"'
            parts.append(f'<g><title>{stage.label}: {end_s:.3f} s</title><rect {box} fill="{pick_colour(index)}"/></g>')
            begin_s = end_s
    return "".join(parts) + _draw_range(state.summary["first_token_s"], top, axis)


def _draw_range(spread: Spread, top: float, axis: TimeAxis) -> str:
    middle = top + _BAR / 2
    line = f'<line x1="{axis.x(spread.min):.1f}" x2="{axis.x(spread.max):.1f}" y1="{middle}" y2="{middle}"/>'
    return line + draw_text(axis.x(spread.max) + 5, middle + 4, f"{spread.median:.2f} s")
