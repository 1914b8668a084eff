"""Draws README's chart of the phases of starts from the newest JSON files."""

from collections.abc import Iterator, Mapping
from math import fsum
from statistics import median
from typing import Any, Final, NamedTuple

from tools.figures.record import Figures
from tools.figures.rows import conditions_of
from tools.phase_chart import Bar, Group, draw_phases
from vllm_cli.bench.phases import PHASES, median_phases


class _Start(NamedTuple):
    """A bar of the chart: the starts of vllm-cli or of its peer in one step."""

    label: str
    step: str
    is_peer: bool = False


_GROUPS: Final = {
    "Default (compiled), vLLM for CPU, 135 million parameters": (
        _Start("vllm serve", "start, compiled", is_peer=True),
        _Start("vllm-cli", "start, compiled"),
        _Start("vllm-cli beside a standby", "warm start, compiled"),
    ),
    "--enforce-eager": (
        _Start("vllm serve", "start, eager", is_peer=True),
        _Start("vllm-cli", "start, eager"),
        _Start("vllm-cli beside a standby", "warm start, eager"),
    ),
    "--enforce-eager, 1.5 billion parameters": (
        _Start("vllm serve", "start, eager, 1.5 billion parameters", is_peer=True),
        _Start("vllm-cli", "start, eager, 1.5 billion parameters"),
    ),
    "Default, vLLM for CUDA on a stand-in for the GPU: no kernel runs": (
        _Start("vllm serve", "stand-in, start, compiled", is_peer=True),
        _Start("vllm-cli", "stand-in, start, compiled"),
    ),
    "Embedded engine, 135 million parameters": (
        _Start("transformers serve", "start, embedded", is_peer=True),
        _Start("vllm-cli", "start, embedded"),
        _Start("vllm-cli beside a standby", "warm start, embedded"),
    ),
}


def draw_chart(figures: Figures) -> str:
    """The chart as SVG. Starts that have not been measured are left out."""
    groups = [Group(title, bars) for title, starts in _GROUPS.items() if (bars := list(_bars(figures, starts)))]
    steps = {start.step for starts in _GROUPS.values() for start in starts}
    runs = [runs[0] for step in sorted(steps) if (runs := figures.runs_of(step))]
    where = sorted({f"machine {run.machine}, {run.date}" for run in runs})
    notes = ["Time from exec to the first token; medians of alternating rounds", "; ".join(where)]
    return draw_phases(groups, notes=notes)


def _bars(figures: Figures, starts: tuple[_Start, ...]) -> Iterator[Bar]:
    for start in starts:
        if runs := figures.runs_of(start.step):
            [rounds] = conditions_of(runs[0].result, int(start.is_peer)).values()
            yield Bar(start.label, divide_median(rounds))


def divide_median(rounds: list[Mapping[str, Any]]) -> dict[str, float]:
    """Divides the median time to the first token into phases, in proportion to the phases' medians.

    If the rounds have no phases, the last phase gets all of the time.
    """
    total_s = median(each.get("first_token_s") or each["answer"] for each in rounds)
    known = [each for each in rounds if each.get("phases_s")]
    phases_s = median_phases(known) if known else {PHASES[-1]: total_s}
    scale = total_s / fsum(phases_s.values())
    return {name: seconds * scale for name, seconds in phases_s.items() if seconds}
