"""Draws README's chart of the phases of starts from the newest JSON files."""

from collections.abc import Iterator, Mapping
from math import fsum
from statistics import median
from typing import Any, Final, NamedTuple

from tools.figures.record import Figures, Measured
from tools.figures.rows import conditions_of, is_of_gpu, machine_of
from tools.phase_chart import Bar, Group, draw_phases
from vllm_cli.bench.phases import median_phases


class _Group(NamedTuple):
    """The steps of a group: starts of vllm-cli and of its peer, and starts of vllm-cli beside a standby."""

    peer: str
    step: str
    warm_step: str = ""


_GROUPS: Final = {
    "vLLM on one H200, default (compiled), 135 million parameters": _Group(
        "vllm serve", "H200, compiled, later", "H200, compiled, beside a standby"
    ),
    "vLLM on one H200, --enforce-eager": _Group("vllm serve", "H200, eager, later", "H200, eager, beside a standby"),
    "vLLM on two cores, --enforce-eager": _Group("vllm serve", "start, eager", "warm start, eager"),
    "vLLM on two cores, --enforce-eager, 1.5 billion parameters": _Group(
        "vllm serve", "start, eager, 1.5 billion parameters"
    ),
    "Embedded engine on two cores, 135 million parameters": _Group(
        "transformers serve", "start, embedded", "warm start, embedded"
    ),
}
_NOTES: Final = (
    "Time from exec to the first token; medians of alternating rounds",
    "On the GPU and by transformers serve, phases before the server answers were not recorded",
)


def draw_chart(figures: Figures) -> str:
    """The chart as SVG: starts of one machine with a GPU, then of one without. It shows what was measured."""
    steps = {step for group in _GROUPS.values() for step in (group.step, group.warm_step)}
    machines = {machine_of(figures, (step for step in steps if is_of_gpu(step) is kind)) for kind in (True, False)}
    runs = {step: run for step in sorted(steps) for run in figures.runs_of(step) if run.machine in machines}
    groups = [Group(title, bars) for title, group in _GROUPS.items() if (bars := list(_bars(runs, group)))]
    where = sorted({f"machine {run.machine}, {run.date}" for run in runs.values()})
    return draw_phases(groups, notes=[*_NOTES, "; ".join(where)])


def _bars(runs: Mapping[str, Measured], group: _Group) -> Iterator[Bar]:
    for label, step, side in (
        (group.peer, group.step, 1),
        ("vllm-cli", group.step, 0),
        ("vllm-cli beside a standby", group.warm_step, 0),
    ):
        if step in runs:
            [rounds] = conditions_of(runs[step].result, side).values()
            yield Bar(label, divide_median(rounds))


def divide_median(rounds: list[Mapping[str, Any]]) -> dict[str, float]:
    """Divides the median time to the first token into phases, in proportion to the phases' medians.

    If the rounds have no phases, the phase `server` has all of the time until the server is healthy.
    """
    total_s = median(each["first_token_s"] for each in rounds)
    known = [each for each in rounds if each.get("phases_s")]
    if known:
        phases_s = median_phases(known)
    else:
        healthy_s = median(each["healthy_s"] for each in rounds)
        phases_s = {"server": healthy_s, "first token": total_s - healthy_s}
    scale = total_s / fsum(phases_s.values())
    return {name: seconds * scale for name, seconds in phases_s.items() if seconds}
