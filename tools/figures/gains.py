"""Reads from docs/figures what hooks and other parts of a start save: the source of all gains.

`leave_out.py` measures them. docs/dev/vllm-hooks.md shows them.
"""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Final, NamedTuple, get_args

from startup.hook import START_PARTS, Release, TimedStart
from startup.vllm.launch.hooks import PARTS
from tools.figures.record import Figures, Measured
from tools.figures.rows import shorten

LEAST: Final = 0.02
"""A part that saves less than this share of a start's time, and of its processor time, has no gain in it."""
WITH: Final = "with"
WITHOUT: Final = "without"
FIRST_TOKEN: Final = "first_token_s"
PROCESSOR: Final = "processor_s"
"""The processor time of all processes until the first token."""


class Part(NamedTuple):
    """A hook or another part of a start, as VCLI_LEAVE_OUT names it."""

    name: str
    gain_in: tuple[TimedStart, ...]
    promise: str
    is_essential: bool = False
    """Whether it cannot be left out."""

    def is_for(self, release: Release) -> bool:
        """Whether a start of this release of vLLM has the part."""
        hooks = PARTS.get(self.name)
        return hooks is None or any(hook.is_for(release) for hook in hooks)


def all_parts() -> dict[str, Part]:
    """All parts by name: the hooks in the order of the documentation, then the other parts."""
    hooks = [hooks[0] for hooks in PARTS.values()]
    found = [Part(hook.name, hook.gain_in, hook.promise, hook.is_essential) for hook in hooks]
    found += [Part(name, each.gain_in, each.promise) for name, each in START_PARTS.items()]
    return {part.name: part for part in found}


class Gain(NamedTuple):
    """What starts of one kind save by one part, as it was measured last."""

    start: TimedStart
    run: Measured

    def seconds(self, side: str, figure: str) -> list[float]:
        """The figure of each round. `side`: `WITH` or `WITHOUT` the part."""
        return [each[figure] for each in self.run.result[side]]

    def saved(self, figure: str) -> list[float]:
        """The share that the part saves in each round."""
        pairs = zip(self.seconds(WITH, figure), self.seconds(WITHOUT, figure), strict=True)
        return [1 - own / without for own, without in pairs]

    @property
    def is_enough(self) -> bool:
        """Whether the median round saves `LEAST` of the time to the first token or of the processor time."""
        return max(median(self.saved(figure)) for figure in (FIRST_TOKEN, PROCESSOR)) >= LEAST

    @property
    def most(self) -> str:
        """The share of the time to the first token, or that of the processor time if only this is enough."""
        share = median(self.saved(FIRST_TOKEN))
        if share >= LEAST:
            return _percent([share])
        return f"{_percent([median(self.saved(PROCESSOR))])} of the processor time"


def gains_of(part: Part, figures: Figures) -> list[Gain]:
    """The newest run in each kind of start."""
    runs = {start: figures.runs_of(step_name(part.name, start)) for start in get_args(TimedStart)}
    return [Gain(start, found[0]) for start, found in runs.items() if found]


def step_name(part: str, start: str) -> str:
    """The name of a step in the JSON files."""
    return f"{start}, without {part}"


def reasons_for(part: Part, gains: Sequence[Gain]) -> list[str]:
    """Why the part is there: its gains, its promise, or both. Starts that were not measured are named."""
    measured = {gain.start: gain for gain in gains}
    reasons = [f"{gain.most} of {gain.start}" for gain in gains if gain.is_enough]
    for start in part.gain_in:
        if start not in measured:
            reasons.append(f"not measured in {start}")
        elif not measured[start].is_enough:
            reasons.append(f"no gain in {start}")
    reasons += [f"promise: {part.promise}"] if part.promise else []
    reasons += ["essential: it cannot be left out"] if part.is_essential else []
    return reasons


COLUMNS: Final = ("Left out", "Start", "First token with; without", "Saved", "Processor time", "Saved", "Rounds", "Run")


def describe(part: Part, gains: Sequence[Gain], figures: Figures) -> Iterator[tuple[str, ...]]:
    """Yields a row with `COLUMNS` for each kind of start."""
    for gain in gains:
        cells = [part.name, gain.start]
        for figure in (FIRST_TOKEN, PROCESSOR):
            sides = (shorten(median(gain.seconds(side, figure))) for side in (WITH, WITHOUT))
            cells += [f"{'; '.join(sides)} s", _percent(gain.saved(figure))]
        run = gain.run
        where = f"{run.machine}, {run.cores} cores, {figures.describe_age(run.date)}"
        yield *cells, str(len(gain.saved(FIRST_TOKEN))), where


def _percent(shares: Sequence[float]) -> str:
    """The median as percent, with minimum and maximum of several."""
    middle, least, most = (f"{pick(shares) * 100:.0f}" for pick in (median, min, max))
    return f"{middle} %" if least == most else f"{middle} % ({least} to {most})"
