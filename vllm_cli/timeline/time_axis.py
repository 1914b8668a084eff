"""A horizontal time axis in seconds, with lines at round numbers."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, floor, log10

from vllm_cli.html_page import draw_text

_NUM_STEPS = 8


@dataclass(frozen=True)
class TimeAxis:
    """Maps 0 to `end_s` seconds to pixels."""

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
            + draw_text(self.x(tick), bottom + 14, f"{tick:g} s", anchor="middle")
            for tick in self._ticks()
        )

    def _ticks(self) -> Iterator[float]:
        step = round_step((self.end_s or 1.0) / _NUM_STEPS)
        digits = max(0, -floor(log10(step)))
        return (round(number * step, digits + 1) for number in range(floor(self.end_s / step) + 1))


def round_step(least: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that is not below `least`."""
    magnitude = 10.0 ** floor(log10(least))
    return next(factor * magnitude for factor in (1, 2, 5, 10) if factor >= ceil(least / magnitude * 1e6) / 1e6)
