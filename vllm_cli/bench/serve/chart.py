"""Charts of `bench serve`: a bar for each level and side."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from vllm_cli.bench.figures import Metric
from vllm_cli.bench.results import Spread
from vllm_cli.bench.serve.results import SERVE_METRICS, ServeResult
from vllm_cli.bench.tables import format_figure
from vllm_cli.html_page import draw_key, draw_text, pick_colour

_DRAWN = ("output_tokens_per_s", "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "e2e_p50_ms", "health_p99_ms")
_WIDTH, _HEIGHT = 640, 230
_TOP, _BOTTOM = 50, 30
_FLOOR = _HEIGHT - _BOTTOM
_GROUP_SHARE, _BAR_SHARE = 0.8, 0.92
"""The share of its space that a group of bars fills, and a bar in a group."""


class _Bar(NamedTuple):
    """The bar of one side at one level."""

    group: int
    side: int
    spread: Spread


def draw_bars(result: ServeResult, levels: Sequence[str]) -> Iterator[str]:
    """A legend, then a chart for each important figure."""
    keys = " ".join(draw_key(pick_colour(index), side.name) for index, side in enumerate(result.sides))
    yield f"<p>{keys}</p>"
    yield from (_draw_panel(result, metric, levels) for metric in SERVE_METRICS if metric.name in _DRAWN)


def _draw_panel(result: ServeResult, metric: Metric, levels: Sequence[str]) -> str:
    """The chart of one figure for all sides and levels; empty if no side has the figure."""
    bars = [
        _Bar(group, index, level.summary[metric.name])
        for index, side in enumerate(result.sides)
        for group, level in enumerate(side.conditions)
        if metric.name in level.summary
    ]
    if not bars:
        return ""
    highest = max(bar.spread.max for bar in bars) or 1.0
    room = _WIDTH / len(levels)
    drawn = [_draw_bar(bar, room, len(result.sides), highest) for bar in bars]
    drawn += [
        draw_text((group + 0.5) * room, _HEIGHT - 12, level, anchor="middle") for group, level in enumerate(levels)
    ]
    better = "higher" if metric.is_higher_better else "lower"
    title = draw_text(0, 18, f"{metric.label} ({better} is better)", kind="title")
    floor = f'<line x1="0" x2="{_WIDTH}" y1="{_FLOOR}" y2="{_FLOOR}"/>'
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" aria-label="{escape(metric.label)}">'
        f"{title}{''.join(drawn)}{floor}</svg>"
    )


def _draw_bar(bar: _Bar, room: float, num_sides: int, highest: float) -> str:
    """A bar up to the median, a thin line from the minimum to the maximum, and the median as text."""
    scale = (_FLOOR - _TOP) / highest
    slot = room * _GROUP_SHARE / num_sides
    width = slot * _BAR_SHARE
    left = (bar.group + (1 - _GROUP_SHARE) / 2) * room + bar.side * slot
    middle = left + width / 2
    height, low, high = bar.spread.median * scale, _FLOOR - bar.spread.min * scale, _FLOOR - bar.spread.max * scale
    return (
        f'<rect x="{left:.1f}" y="{_FLOOR - height:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'fill="{pick_colour(bar.side)}"/>'
        f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        f"{draw_text(middle, high - 4, format_figure(bar.spread.median), anchor='middle')}"
    )
