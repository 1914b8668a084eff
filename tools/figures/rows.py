"""The rows of the tables of figures. Each row names a step (benchmark) of `make figures` and its figures."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from math import floor, log10
from statistics import median
from typing import Any, Final, NamedTuple

from tools.figures.record import Figures, Measured

_EAGER: Final = "`vllm serve --enforce-eager`"
_DEFAULT: Final = "`vllm serve`"
_COMPILING: Final = f"{_DEFAULT}, whose CPU build compiles in every start"
_TRANSFORMERS: Final = "`transformers serve`"
_FIRST_TOKEN: Final = (("from warm", "first_token_s"),)
_WARM: Final = (("from standby", "first_token_s"),)
_TOKENS: Final = tuple((f"{level} at once", "output_tokens_per_s") for level in (1, 8, 32))
_PROCESSOR: Final = (("32 at once", "processor_ms_per_token"),)
_KILLED: Final = (("engine killed", "next_token_s"),)
_LOOP: Final = f"{_EAGER} in a loop"
_HEALTH: Final = tuple(("300 renders", f"health_{which}_ms") for which in ("p50", "p99", "max"))
_BY_HAND: Final = "vLLM's endpoints, called by hand"
_RENDERS: Final = "health beside renders"
_ORDINARY: Final = "health beside renders, ordinary priority"
_WAYS: Final = ("sleep", "by hand", "stop")
_LEVELS: Final = ("level 1", "level 2")
"""Levels of vLLM's sleep. A swap that stops a model has no level, and is compared with both levels."""
_EMBEDDED: Final = "tok/s at 1; 8; 32, embedded engine"
_BESIDE: Final = "tokens beside a busy process"
_SHARED: Final = "first start, compiled, shared"
_LARGE: Final = "1.5 billion parameters"
_LARGE_RANDOM: Final = "1.5 billion random parameters"
_LARGEST: Final = "8 billion parameters"
_LARGEST_RANDOM: Final = "8 billion random parameters"
_FIRST_START: Final = "first start on the machine"
_ON_GPU: Final = "random weights, short context"
_NO_KERNEL: Final = "on a stand-in for the GPU (no kernel runs)"
_STAND_IN: Final = f"first answer {_NO_KERNEL}"
_LATER: Final = "a later start of vllm-cli"
_SIDES: Final = ("ours", "plain", "later")
"""The sides of a case of `tools.gpu_stub.starts`."""
_BUSY: Final = "tokens, vLLM engine"


def _case(name: str) -> tuple[tuple[str, str], ...]:
    """The series of a case of `tools.gpu_stub.starts`."""
    return ((name, "first_token_s"),)


@dataclass(frozen=True)
class Row:
    """A comparison of two servers (sides) that one step measures."""

    label: str
    peer: str
    """The command of the other side, as the table shows it."""
    step: str
    series: tuple[tuple[str, str], ...] = _FIRST_TOKEN
    """Condition and metric of each figure."""
    unit: str = " s"
    ours: int = 0
    theirs: int = 1
    is_headline: bool = False
    """Whether README shows the row."""

    def describe_peer(self, result: Mapping[str, Any]) -> str:
        """The command of the other side, with its version if the server has reported one."""
        version = result["sides"][self.theirs].get("version") if "sides" in result else None
        return f"{self.peer}, {version}" if version else self.peer

    def is_in(self, result: Mapping[str, Any]) -> bool:
        """Whether the result has the row's figures. A step may have got a row only after the run."""
        sides = [conditions_of(result, side) for side in (self.ours, self.theirs)]
        return all(metric in found.get(name, [{}])[0] for found in sides for name, metric in self.series)

    def cells(self, result: Mapping[str, Any]) -> tuple[str, str, str, str]:
        """The figures of vllm-cli and of the other side, their ratio, and the number of rounds."""
        ours, theirs = (
            [[each[metric] for each in conditions_of(result, side)[condition]] for condition, metric in self.series]
            for side in (self.ours, self.theirs)
        )
        ratios = [find_ratios(*pair) for pair in zip(ours, theirs, strict=True)]
        return (
            _describe(ours, shorten, self.unit),
            _describe(theirs, shorten, self.unit),
            "; ".join(_describe([each], "{:.2f}".format) for each in ratios),
            " and ".join(str(number) for number in dict.fromkeys((len(ours[0]), len(theirs[0])))),
        )


def find_ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """The ratio in each round, or that of the medians if the sides have different numbers of rounds."""
    if len(ours) == len(theirs):
        return [one / other for one, other in zip(ours, theirs, strict=True)]
    return [median(ours) / median(theirs)]


def _describe(series: list[list[float]], format_value: Callable[[float], str], unit: str = "") -> str:
    """The medians of all figures. A single figure also gets its least and greatest value."""
    text = "; ".join(format_value(median(values)) for values in series) + unit
    least, most = (format_value(pick(series[0])) for pick in (min, max))
    return text if len(series) > 1 or least == most else f"{text} ({least}–{most})"


def shorten(value: float) -> str:
    """The value with three digits, at most two of them after the decimal point."""
    decimals = min(2, 2 - floor(log10(value))) if 0 < value < 100 else 0
    return f"{value:,.{decimals}f}"


def conditions_of(result: Mapping[str, Any], side: int) -> dict[str, list[Mapping[str, Any]]]:
    """Condition -> rounds of a side, from the JSON of `bench` or of tools/gpu_stub."""
    if "sides" in result:
        return {each["condition"]: each["rounds"] for each in result["sides"][side]["conditions"]}
    if "cases" in result:
        cases, name = result["cases"], _SIDES[side]
        return {case: [*map(_as_bench, sides[name])] for case, sides in cases.items() if sides.get(name)}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for name, each in result["ways"].items():
        way, _, level = name.partition(", ")
        if way == _WAYS[side]:
            rounds = [{"swap_s": seconds} for seconds in each["swaps_s"]]
            found |= dict.fromkeys([level] if level else _LEVELS, rounds)
    return found


def _as_bench(start: Mapping[str, Any]) -> dict[str, Any]:
    """A start of `tools.gpu_stub.starts` with the names of `bench startup`."""
    return {**start, "healthy_s": start["healthy"], "first_token_s": start["answer"]}


_PLUGIN: Final = _case("eager, plugin")


def _on_stand_in(label: str, peer: str, case: str) -> Row:
    """A row of a step with one case, which has its name."""
    theirs = _SIDES.index("later") if peer is _LATER else 1
    return Row(f"{label}, {_NO_KERNEL}", peer, f"stand-in, {case}", _case(case), theirs=theirs)


ROWS: Final = {
    "Start of vLLM's CUDA build on a GPU": (
        Row(f"first token, {_ON_GPU}", _DEFAULT, "GPU, compiled", _case("compiled, later")),
        Row(f"first token, {_ON_GPU}", _EAGER, "GPU, eager", _case("eager, later")),
        Row(f"beside a standby, {_ON_GPU}", _DEFAULT, "GPU, compiled", _case("compiled, beside a standby")),
        Row(f"beside a standby, {_ON_GPU}", _EAGER, "GPU, eager", _case("eager, beside a standby")),
        Row(f"{_LARGEST_RANDOM}, short context", _EAGER, f"GPU, eager, {_LARGEST}", _case("eager, later")),
        Row(f"{_LARGE_RANDOM}, short context", _EAGER, f"GPU, eager, {_LARGE}", _case("eager, later")),
        Row(f"{_FIRST_START}, {_ON_GPU}", _DEFAULT, "GPU, compiled", _case("compiled, first")),
        Row(f"{_FIRST_START}, {_ON_GPU}", _EAGER, "GPU, eager", _case("eager, first")),
        Row(f"tok/s of 32 streams, {_ON_GPU}", _DEFAULT, "GPU, requests", _TOKENS[-1:], ""),
    ),
    "Models that change places on a GPU": (
        Row("swap, level 1, random weights", _BY_HAND, "GPU, swaps", (("level 1", "swap_s"),)),
        Row("swap, level 1, random weights", "`--on-swap stop`", "GPU, swaps", (("level 1", "swap_s"),), theirs=2),
        Row("swap, level 2, random weights", _BY_HAND, "GPU, swaps", (("level 2", "swap_s"),)),
    ),
    "Start of vLLM's CUDA build on a stand-in for the GPU": (
        Row(_STAND_IN, _DEFAULT, "stand-in, start, compiled", _case("compiled, later")),
        Row(_STAND_IN, _EAGER, "stand-in, start, eager", _case("eager, later")),
        _on_stand_in("first start on the machine", _DEFAULT, "compiled, first"),
        _on_stand_in("first start on the machine", _EAGER, "eager, first"),
        _on_stand_in("first start, filled `--compile-cache`", _DEFAULT, "compiled, --compile-cache"),
        _on_stand_in("first start in a home that the peer has used", _DEFAULT, "compiled, after plain"),
        _on_stand_in("new pod with a volume on `VLLM_CACHE_ROOT`", _LATER, "compiled, volume"),
    ),
    "Start of vLLM": (
        Row("first token, vLLM engine", _COMPILING, "start, compiled"),
        Row("first token, vLLM engine", _EAGER, "start, eager", is_headline=True),
        Row("first start ever, vLLM engine", _EAGER, "first start, eager", is_headline=True),
        Row("a plugin replaces names in vLLM's modules, vLLM engine", _EAGER, "start, eager, plugin", _PLUGIN),
        Row("other caches empty, `--compile-cache`", f"{_DEFAULT}, empty caches", _SHARED),
        Row(f"{_LARGE_RANDOM}, vLLM engine", _EAGER, f"start, eager, {_LARGE}"),
    ),
    "Warm starts beside `vllm-cli standby`": (
        Row("beside a standby, vLLM engine", _COMPILING, "warm start, compiled", _WARM),
        Row("beside a standby, vLLM engine", _EAGER, "warm start, eager", _WARM, is_headline=True),
        Row("beside a standby, embedded engine", _TRANSFORMERS, "warm start, embedded", _WARM),
    ),
    "Start of the embedded engine": (
        Row("first token, embedded engine", _TRANSFORMERS, "start, embedded"),
        Row(f"{_LARGE_RANDOM}, embedded engine", _TRANSFORMERS, f"start, embedded, {_LARGE}"),
    ),
    "Under load": (
        Row(_EMBEDDED, _DEFAULT, "tokens, embedded", _TOKENS, ""),
        Row(_EMBEDDED, _EAGER, "tokens, embedded", _TOKENS, "", theirs=2),
        Row("tok/s beside a busy process", _DEFAULT, _BESIDE, _TOKENS, ""),
        Row("tok/s of 32 streams, vLLM engine", _DEFAULT, _BUSY, _TOKENS[-1:], ""),
        Row("processor time of a token, 32 streams, vLLM engine", _DEFAULT, _BUSY, _PROCESSOR, " ms"),
    ),
    "After the death of an engine": (
        Row("engine killed → next token, `--restart on-failure`", _LOOP, "killed engine", _KILLED),
    ),
    "/health while a server is busy": (
        Row("`/health` p50; p99; max, vLLM engine, as root (SCHED_FIFO)", _EAGER, _RENDERS, _HEALTH, " ms", theirs=2),
        Row("`/health` p50; p99; max, vLLM engine, without SCHED_FIFO", _EAGER, _ORDINARY, _HEALTH, " ms"),
        Row("`/health` p50; p99; max, embedded engine", _EAGER, _RENDERS, _HEALTH, " ms", ours=1, theirs=2),
    ),
}
"""Heading in docs/figures.md -> the rows below it."""


class Shown(NamedTuple):
    """A row with the run that it shows."""

    row: Row
    run: Measured


def newest(figures: Figures, section: str) -> Iterator[Shown]:
    """Yields each measured row of a section, with the newest run and with the run that README shows."""
    in_readme = [*headlines(figures, are_of_gpu=True), *headlines(figures, are_of_gpu=False)]
    for row in ROWS[section]:
        runs = [Shown(row, run) for run in figures.runs_of(row.step) if row.is_in(run.result)]
        yield from (shown for shown in runs if shown is runs[0] or shown in in_readme)


def is_of_gpu(step: str) -> bool:
    """Whether the step needs a GPU."""
    return step.startswith("GPU, ")


def machine_of(figures: Figures, steps: Iterable[str]) -> str:
    """The machine that has measured the most of the steps since the newest release, or else the most of all.

    If several have, the one that did so last.
    """
    runs: dict[str, list[Measured]] = {}
    for run in chain.from_iterable(map(figures.runs_of, steps)):
        runs.setdefault(run.machine, []).append(run)

    def rank(letter: str) -> tuple[int, int, str]:
        num_new = sum(figures.is_new(run.date) for run in runs[letter])
        return num_new, len(runs[letter]), max(run.moment for run in runs[letter])

    return max(runs, key=rank, default="")


def headlines(figures: Figures, *, are_of_gpu: bool) -> list[Shown]:
    """README's rows of one machine, with its newest runs."""
    rows = [row for row in chain.from_iterable(ROWS.values()) if row.is_headline and is_of_gpu(row.step) is are_of_gpu]
    letter = machine_of(figures, [row.step for row in rows])
    return [
        Shown(row, run)
        for row in rows
        for run in figures.runs_of(row.step)
        if run.machine == letter and row.is_in(run.result)
    ]
