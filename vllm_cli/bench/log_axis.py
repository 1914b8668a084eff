"""A vertical logarithmic axis: a line at each power of ten."""

from dataclasses import dataclass
from math import ceil, floor, log10

from vllm_cli.html_page import draw_text


@dataclass(frozen=True)
class LogAxis:
    """Maps figures between two powers of ten to pixels."""

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
