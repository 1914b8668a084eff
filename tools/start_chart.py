"""`python -m tools.start_chart RESULT.json`: draws the README's chart of first tokens as a standalone SVG.

RESULT.json is a file of `bench startup --json`.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from pathlib import Path
from typing import Final

import msgspec

from vllm_cli.bench.results import BenchResult, Spread
from vllm_cli.bench.startup.results import StartupSide

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

_NUM_STEPS: Final = 8
"""At most this many parts of the time axis."""
_FIRST_HUE: Final = 215
_GOLDEN_ANGLE: Final = 137.508

StartupResult = BenchResult[StartupSide]


def draw_startup_svg(result: StartupResult) -> str:
    """One bar per side and state up to the median, with the range of the rounds; opaque background."""
    states = result.settings["states"]
    by_side = [[state.summary["first_token_s"] for state in side.conditions] for side in result.sides]
    spreads = [list(row) for row in zip(*by_side, strict=True)]
    left = _MARGIN + _LETTER * max(len(side.name) for side in result.sides) + 10
    axis = _TimeAxis(max(s.max for row in spreads for s in row), left, _WIDTH - left - _RIGHT)
    parts = [_draw_text(_MARGIN, 30, "Time from exec to the first token", kind="title")]
    top = _TITLE
    for state, row in zip(states, spreads, strict=True):
        if len(states) > 1:
            parts.append(_draw_text(_MARGIN, top + 16, f"from {state}"))
            top += _SUBTITLE
        bottom = top + _ROW * len(row)
        parts.append(axis.draw(top, bottom))
        for index, (side, spread) in enumerate(zip(result.sides, row, strict=True)):
            parts += _draw_bar(side.name, spread, top + _ROW * index, axis, _pick_colour(index))
        top = bottom + _AXIS
    height = top + _FOOTER
    parts += [
        _draw_text(_MARGIN, height - 32 + 16 * line, text, kind="note") for line, text in enumerate(_describe(result))
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(_summarize(result, spreads[0]))}"><style>{_STYLE}</style>'
        f'<rect x=".5" y=".5" width="{_WIDTH - 1}" height="{height - 1}" rx="6" fill="#ffffff" stroke="#d1d9e0"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _draw_bar(name: str, spread: Spread, top: float, axis: "_TimeAxis", colour: str) -> Iterator[str]:
    bar_top = top + (_ROW - _BAR) / 2
    middle = top + _ROW / 2
    yield _draw_text(axis.left - 10, middle + 4, name, anchor="end")
    width = axis.x(spread.median) - axis.x(0)
    yield f'<rect x="{axis.x(0):.1f}" y="{bar_top:.1f}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>'
    low, high = axis.x(spread.min), axis.x(spread.max)
    if high > low:
        yield f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
        for x in (low, high):
            yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{middle - _WHISKER:.1f}" y2="{middle + _WHISKER:.1f}"/>'
    yield _draw_text(max(high, axis.x(spread.median)) + 8, middle + 4, f"{spread.median:.2f} s")


def _describe(result: StartupResult) -> tuple[str, str]:
    num_rounds = result.settings["num_rounds"]
    rounds = f"Medians of {num_rounds} alternating rounds, lines: minimum to maximum"
    return f"{result.machine.description}; {result.created_at[:10]}", rounds


def _summarize(result: StartupResult, spreads: list[Spread]) -> str:
    times = (f"{side.name} {spread.median:.2f} s" for side, spread in zip(result.sides, spreads, strict=True))
    return "Time from exec to the first token: " + ", ".join(times)


@dataclass(frozen=True)
class _TimeAxis:
    """Maps 0 to `end_s` seconds to pixels, with lines at round numbers."""

    end_s: float
    left: float
    width: float

    def x(self, time_s: float) -> float:
        """The pixel of a time."""
        return self.left + self.width * time_s / (self.end_s or 1.0)

    def draw(self, top: float, bottom: float) -> str:
        """Lines from top to bottom, with their times below."""
        return "".join(
            f'<line class="grid" x1="{self.x(tick):.1f}" x2="{self.x(tick):.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
            + _draw_text(self.x(tick), bottom + 14, f"{tick:g} s", anchor="middle")
            for tick in self._ticks()
        )

    def _ticks(self) -> Iterator[float]:
        step = _round_step((self.end_s or 1.0) / _NUM_STEPS)
        digits = max(0, -floor(log10(step)))
        return (round(number * step, digits + 1) for number in range(floor(self.end_s / step) + 1))


def _round_step(least: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that is not below `least`."""
    magnitude = 10.0 ** floor(log10(least))
    return next(factor * magnitude for factor in (1, 2, 5, 10) if factor >= ceil(least / magnitude * 1e6) / 1e6)


def _pick_colour(index: int) -> str:
    """A colour for a bar; neighbouring indexes have distant hues."""
    hue = round(index * _GOLDEN_ANGLE) % 360
    return f"hsl({hue + _FIRST_HUE}, 55%, {(46, 36, 56)[index // 8 % 3]}%)"


def _draw_text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "") -> str:
    """A text in an SVG chart."""
    css_class = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{css_class}>{escape(text)}</text>'


if __name__ == "__main__":
    sys.stdout.write(draw_startup_svg(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=StartupResult)))
