"""`python -m tools.start_chart RESULT.json`: draws the README's chart of first tokens as a standalone SVG.

RESULT.json is a file of `bench startup --json`.
"""

import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Final

import msgspec

from vllm_cli.bench.results import Spread
from vllm_cli.bench.startup.results import StartupResult
from vllm_cli.chart_axes import TimeAxis
from vllm_cli.html_page import draw_text, pick_colour

_WIDTH: Final = 760
_RIGHT, _MARGIN = 80, 20
_TITLE, _SUBTITLE, _ROW, _AXIS, _FOOTER = 50, 28, 36, 34, 40
_BAR: Final = 20
_LETTER: Final = 7.5
"""Upper estimate of the mean width of a letter of a name."""
_WHISKER: Final = 4
"""Half the height of the ends of a whisker."""
_STYLE: Final = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
text.title { font-size: 17px; font-weight: 600; }
text.note { font-size: 11px; fill: #59636e; }
line { stroke: #1f2328; stroke-width: 1.2; }
line.grid { stroke: #d1d9e0; stroke-width: 1; }
"""


def draw_startup_svg(result: StartupResult) -> str:
    """One bar per side and state up to the median, with the range of the rounds; opaque background."""
    states = result.settings.states
    by_side = [[state.summary["first_token_s"] for state in side.conditions] for side in result.sides]
    spreads = [list(row) for row in zip(*by_side, strict=True)]
    left = _MARGIN + _LETTER * max(len(side.name) for side in result.sides) + 10
    axis = TimeAxis(max(s.max for row in spreads for s in row), left, _WIDTH - left - _RIGHT)
    parts = [draw_text(_MARGIN, 30, "Time from exec to the first token", kind="title")]
    top = _TITLE
    for state, row in zip(states, spreads, strict=True):
        if len(states) > 1:
            parts.append(draw_text(_MARGIN, top + 16, f"from {state}"))
            top += _SUBTITLE
        bottom = top + _ROW * len(row)
        parts.append(axis.draw(top, bottom))
        for index, (side, spread) in enumerate(zip(result.sides, row, strict=True)):
            parts += _draw_bar(side.name, spread, top + _ROW * index, axis, pick_colour(index))
        top = bottom + _AXIS
    height = top + _FOOTER
    parts += [
        draw_text(_MARGIN, height - 32 + 16 * line, text, kind="note") for line, text in enumerate(_describe(result))
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(_summarize(result, spreads[0]))}"><style>{_STYLE}</style>'
        f'<rect x=".5" y=".5" width="{_WIDTH - 1}" height="{height - 1}" rx="6" fill="#ffffff" stroke="#d1d9e0"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _draw_bar(name: str, spread: Spread, top: float, axis: TimeAxis, colour: str) -> Iterator[str]:
    bar_top = top + (_ROW - _BAR) / 2
    middle = top + _ROW / 2
    yield draw_text(axis.left - 10, middle + 4, name, anchor="end")
    width = axis.x(spread.median) - axis.x(0)
    yield f'<rect x="{axis.x(0):.1f}" y="{bar_top:.1f}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>'
    low, high = axis.x(spread.min), axis.x(spread.max)
    if high > low:
        yield f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
        for x in (low, high):
            yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{middle - _WHISKER:.1f}" y2="{middle + _WHISKER:.1f}"/>'
    yield draw_text(max(high, axis.x(spread.median)) + 8, middle + 4, f"{spread.median:.2f} s")


def _describe(result: StartupResult) -> tuple[str, str]:
    rounds = f"Medians of {result.settings.num_rounds} alternating rounds, lines: minimum to maximum"
    return f"{result.machine.description}; {result.created_at[:10]}", rounds


def _summarize(result: StartupResult, spreads: list[Spread]) -> str:
    times = (f"{side.name} {spread.median:.2f} s" for side, spread in zip(result.sides, spreads, strict=True))
    return "Time from exec to the first token: " + ", ".join(times)


if __name__ == "__main__":
    sys.stdout.write(draw_startup_svg(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=StartupResult)))
