"""Divides the time from exec to the first token into phases, which are the same for all servers.

With vLLM, a line of the log ends each phase. The embedded engine reports its spans on `/startupz`. Other
servers show only when they are healthy and when they send the first token.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from statistics import median
from typing import Any, Final

from vllm_cli.bench.report import Side
from vllm_cli.terminal import align

PHASES: Final = (
    "imports",
    "configuration",
    "engine process",
    "workers",
    "weights",
    "compile and warm-up",
    "CUDA graphs",
    "server",
    "first token",
)
"""The phases, in order of time."""
_API_SERVER: Final = ("(APIServer ", "(ApiServer_")
"""The prefixes of the API process's lines. vLLM adds them once this process has imported its modules."""
_FIRST: Final = {
    "engine process": ("Initializing a V1 LLM engine",),
    "workers": ("Starting to load model", "Loading model from scratch"),
}
"""Phase -> texts. The first line with one of these texts ends the phase."""
_LOADED: Final = ("Loading weights took", "Model loading took")
"""The last line with one of these texts ends the phase `weights`, because each worker writes such a line."""
_CAPTURES: Final = "Capturing CUDA graphs"
_CAPTURED: Final = "Graph capturing finished"
_INITIALIZED: Final = "init engine (profile, create kv cache, warmup model) took"
_REPORTED: Final = {
    "imports": ("preload_imports", "fork_from_standby"),
    "configuration": ("locate_model", "resolve_model", "preflight"),
    "engine process": ("start_engine_process", "start_process", "take_over"),
    "weights": ("load_weights",),
    "compile and warm-up": ("read_limits", "choose_runner", "check_prompt_embeds", "allocate_kv_cache"),
}
"""Phase of `PHASES` -> spans of `/startupz`. The last of them ends the phase."""
_POLL_S: Final = 0.01
_BAR_WIDTH: Final = 60


class StartLog:
    """Reads the output of a start, and records when a line ends a phase."""

    def __init__(self, file: FileIO) -> None:
        self.ends_ns: dict[str, int] = {}
        """When each phase ended, on the monotonic clock. Phases that no line has ended are missing."""
        self._captures_ns = 0
        self._captures_since_ns: int | None = None
        self._file = file
        self._rest = b""

    def read(self) -> None:
        """Reads the lines written since the last call, and counts them as written now."""
        written = self._rest + self._file.read()
        *lines, self._rest = written.replace(b"\r", b"\n").split(b"\n")
        now_ns = time.monotonic_ns()
        for line in lines:
            self.note(line.decode(errors="replace"), now_ns)

    def note(self, line: str, now_ns: int) -> None:
        """Records the phases that a line ends."""
        if "engine process" not in self.ends_ns and any(name in line for name in _API_SERVER):
            self.ends_ns.setdefault("imports", now_ns)
            self.ends_ns["configuration"] = now_ns
        for phase, texts in _FIRST.items():
            if any(text in line for text in texts):
                self.ends_ns.setdefault(phase, now_ns)
        if any(text in line for text in _LOADED):
            self.ends_ns["weights"] = now_ns
        self._note_graphs(line, now_ns)

    def _note_graphs(self, line: str, now_ns: int) -> None:
        """Adds up the times of captures. The first captures only measure memory, and warm-up follows them."""
        if _CAPTURES in line:
            self._captures_since_ns = self._captures_since_ns or now_ns
        elif self._captures_since_ns and (_CAPTURED in line or _INITIALIZED in line):
            self._captures_ns += now_ns - self._captures_since_ns
            self._captures_since_ns = None
        if _INITIALIZED in line:
            self.ends_ns["compile and warm-up"] = now_ns - self._captures_ns
            self.ends_ns["CUDA graphs"] = now_ns


@contextmanager
def follow_log(path: Path) -> Iterator[StartLog]:
    """Yields a log that a thread reads every few milliseconds, and once at the end of the block."""
    is_over = threading.Event()
    with FileIO(path) as file:
        log = StartLog(file)
        thread = threading.Thread(target=_read_until, args=(log, is_over), name="follow-log")
        thread.start()
        try:
            yield log
        finally:
            is_over.set()
            thread.join()


def ends_of_spans(spans_end_s: Mapping[str, float]) -> dict[str, float]:
    """Phase -> its end in seconds since exec. `spans_end_s`: `process:span` of `/startupz` -> its end."""
    by_name = {key.partition(":")[2]: end_s for key, end_s in spans_end_s.items()}
    ends: dict[str, float] = {}
    for phase, names in _REPORTED.items():
        found = [by_name[name] for name in names if name in by_name]
        if found:
            ends[phase] = max(found)
    return ends


def divide(ends_s: Mapping[str, float], first_token_s: float) -> dict[str, float]:
    """Seconds by phase, which add up to `first_token_s`. A phase of unknown end is part of the next phase."""
    phases_s: dict[str, float] = {}
    begin_s = 0.0
    ends_s = {**ends_s, PHASES[-1]: first_token_s}
    for name in PHASES:
        if name in ends_s:
            end_s = min(max(ends_s[name], begin_s), first_token_s)
            phases_s[name] = end_s - begin_s
            begin_s = end_s
    return phases_s


def median_phases(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median of each phase over the rounds that have it."""
    found = [figures["phases_s"] for figures in rounds]
    known = {name: [phases_s[name] for phases_s in found if name in phases_s] for name in PHASES}
    return {name: median(values) for name, values in known.items() if values}


def describe_phases(sides: Sequence[Side]) -> dict[str, list[str]]:
    """Condition -> lines of the report: a stacked bar for each side, then a table of medians."""
    return {
        condition: _describe({side.name: median_phases(side.rounds[condition]) for side in sides})
        for condition in sides[0].rounds
    }


def _describe(sides: Mapping[str, Mapping[str, float]]) -> list[str]:
    most_s = max(sum(phases_s.values()) for phases_s in sides.values())
    bars = [[name, _bar(phases_s, _BAR_WIDTH / most_s)] for name, phases_s in sides.items()]
    rows = [["phase, median s", *sides]]
    for number, name in enumerate(PHASES, 1):
        if any(phases_s.get(name) for phases_s in sides.values()):
            cells = (f"{phases_s[name]:.2f}" if name in phases_s else "-" for phases_s in sides.values())
            rows.append([f"{number} {name}", *cells])
    return ["", *align(bars), "", *align(rows, are_figures=True), *_describe_missing(sides)]


def _bar(phases_s: Mapping[str, float], scale: float) -> str:
    """A bar that repeats each phase's digit in proportion to the phase's time."""
    text, end_s = "", 0.0
    for number, name in enumerate(PHASES, 1):
        end_s += phases_s.get(name, 0.0)
        text += str(number) * (round(end_s * scale) - len(text))
    return text


def _describe_missing(sides: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lists the phases that include earlier phases, because the output does not show the earlier ends."""
    lines = []
    for side, phases_s in sides.items():
        missing: list[str] = []
        for name in PHASES:
            if name not in phases_s:
                missing.append(name)
            elif missing:
                lines.append(f"{side}: {name} includes {', '.join(missing)}, whose ends its output does not show")
                missing = []
    return lines


def _read_until(log: StartLog, is_over: threading.Event) -> None:
    while not is_over.wait(_POLL_S):
        log.read()
    log.read()
