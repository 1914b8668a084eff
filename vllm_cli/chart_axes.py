"""Axes of SVG charts: a horizontal one in seconds, and a vertical logarithmic one."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, floor, log10

from vllm_cli.html_page import draw_text

_NUM_STEPS = 8


@dataclass(frozen=True)
class TimeAxis:
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


@dataclass(frozen=True)
class LogAxis:
    """Maps figures between two powers of ten to pixels, with a line at each power."""

    least_power: int
    greatest_power: int
    top: float
    bottom: float

    @classmethod
    def around(cls, least: float, greatest: float, *, top: float, bottom: float) -> "LogAxis":
        """An axis that contains both figures, which must be greater than 0."""
        least_power = floor(log10(least))
        return cls(least_power, max(least_power + 1, ceil(log10(greatest))), top, bottom)

    def y(self, figure: float) -> float:
        """The pixel of a figure; figures below the axis are drawn at its lower end."""
        power = max(log10(figure), self.least_power) if figure > 0 else self.least_power
        share = (power - self.least_power) / (self.greatest_power - self.least_power)
        return self.bottom - share * (self.bottom - self.top)

    def draw(self, left: float, right: float, unit: str) -> str:
        """A labelled line for each power of ten."""
        return "".join(
            f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{self.y(10.0**power):.1f}" '
            f'y2="{self.y(10.0**power):.1f}"/>'
            + draw_text(left - 8, self.y(10.0**power) + 4, f"{10.0**power:g} {unit}", anchor="end")
            for power in range(self.least_power, self.greatest_power + 1)
        )
