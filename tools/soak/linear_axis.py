"""A vertical linear axis, with lines at round numbers."""

from dataclasses import dataclass
from math import floor

from vllm_cli.html_page import draw_text
from vllm_cli.timeline.time_axis import round_step

_NUM_STEPS = 5


@dataclass(frozen=True)
class LinearAxis:
    """Maps figures between two bounds to pixels."""

    least: float
    greatest: float
    step: float
    top: float
    bottom: float

    @classmethod
    def around(cls, least: float, greatest: float, *, top: float, bottom: float) -> "LinearAxis":
        """An axis between two round numbers that contains both figures."""
        step = round_step((greatest - least or 1.0) / _NUM_STEPS)
        return cls(floor(least / step) * step, (floor(greatest / step) + 1) * step, step, top, bottom)

    def y(self, figure: float) -> float:
        """The pixel of a figure."""
        return self.bottom - (figure - self.least) / (self.greatest - self.least) * (self.bottom - self.top)

    def draw(self, left: float, right: float, unit: str) -> str:
        """A labelled line for each step."""
        num_steps = round((self.greatest - self.least) / self.step)
        ticks = [self.least + number * self.step for number in range(num_steps + 1)]
        return "".join(
            f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{self.y(tick):.1f}" y2="{self.y(tick):.1f}"/>'
            + draw_text(left - 8, self.y(tick) + 4, f"{tick:g} {unit}".rstrip(), anchor="end")
            for tick in ticks
        )
