"""Records phases and modules of a vLLM start. Each process writes a file, which the launcher reads later."""

import functools
import inspect
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from startup.hook import Hook, Name
from startup.imports.finder import wraps
from startup.imports.late_modules import is_loaded
from startup.reports.timeline.timeline import API, PhaseSpan

if TYPE_CHECKING:
    from startup.reports.crash.output_record import OutputRecord


class Journal:
    """Writes this process's records as JSON lines. A forked child writes to a file of its own.

    Writing never raises an exception, because a start must not fail because of its records.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known_modules: set[str] = set()
        self.is_open = True

    @contextmanager
    def span(self, name: str, *, waits_for: str | None = None) -> Iterator[None]:
        """Records the block's duration and new modules. `waits_for` names a process that the block awaits."""
        begin_ns = time.monotonic_ns()
        try:
            yield
        finally:
            self.add_span(name, begin_ns, time.monotonic_ns(), waits_for=waits_for)

    def add_span(self, name: str, begin_ns: int, end_ns: int, *, waits_for: str | None = None) -> None:
        """Records a span of this process, in monotonic nanoseconds."""
        if self.is_open:
            times = {"begin_ns": begin_ns, "end_ns": end_ns, "waits_for": waits_for}
            self.write(process=multiprocessing.current_process().name, span=name, **times)
            self.record_modules()

    def mark_loaded_modules(self) -> None:
        """Makes later records leave out the modules that are loaded now."""
        self._known_modules = {name for name in list(sys.modules) if is_loaded(name)}

    def record_modules(self) -> None:
        """Records the modules that were loaded since the last call, in order of import."""
        new = [name for name in list(sys.modules) if name not in self._known_modules and is_loaded(name)]
        if new and self.is_open:
            self._known_modules.update(new)
            names = [name for name in new if is_importable(name)]
            if names:
                self.write(process=multiprocessing.current_process().name, modules=names)

    def write(self, **fields: Any) -> None:
        """Appends a JSON line with these fields."""
        with suppress(OSError, ValueError), (self.folder / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(fields) + "\n")


class ThisStart:
    """The start to which this process and its forks belong. A template belongs to no start."""

    journal: Journal | None = None
    record: "OutputRecord | None" = None
    environment: Mapping[str, str] = {}
    """The environment with which the forkserver started."""


this_start: Final = ThisStart()

_EXCLUDED: Final = ("__", "startup", "transformers_modules")
"""Prefixes of modules that are not recorded, such as modules of this program and a model's own code."""

FORKSERVER: Final = "forkserver"
API_SERVER: Final = "ApiServer"
"""Prefix of the names of processes that `--api-server-count` starts."""
MAIN: Final = "MainProcess"
"""multiprocessing's name for a process that it did not start."""

_AWAITED: Final = {
    "asyncmpclient_init": "EngineCore",
    "syncmpclient_init": "EngineCore",
    "executor_init": "VllmWorker-0",
}
"""vLLM's spans that wait for another process, with that process's usual name."""


@dataclass
class StartRecordings:
    """All records that the processes of a start have written so far."""

    spans: list[PhaseSpan] = field(default_factory=list)
    modules: dict[str, list[str]] = field(default_factory=dict)
    """The loaded modules of each process, in order of import."""
    unfit: set[str] = field(default_factory=set)
    """Names of hooks that the forkserver has left out."""
    kernels: list[dict[str, Any]] = field(default_factory=list)
    """The kernels of Triton that engines and workers have loaded or compiled, as `Kernel` with times."""
    kernel_keys: dict[str, str] = field(default_factory=dict)
    """Id of a kernel -> its folder in Triton's cache."""

    @classmethod
    def read(cls, folder: Path) -> "StartRecordings":
        """Reads the files of all processes. Skips incomplete lines."""
        recordings = cls()
        for path in sorted(folder.glob("*.jsonl")):
            with suppress(OSError):
                for line in path.read_text().splitlines():
                    with suppress(ValueError, KeyError, TypeError):
                        recordings._add(json.loads(line))
        return recordings

    def _add(self, line: Mapping[str, Any]) -> None:
        if "span" in line:
            process, begin_ns, end_ns = line["process"], line["begin_ns"], line["end_ns"]
            waits_for = line.get("waits_for") or _AWAITED.get(line["span"])
            name = API if process == MAIN else process
            self.spans.append(PhaseSpan(name, line["span"], begin_ns, end_ns, waits_for))
        if "modules" in line:
            self.modules.setdefault(line["process"], []).extend(line["modules"])
        self.unfit.update(line.get("unfit", ()))
        if "kernel" in line:
            self.kernels.append(line["kernel"])
            self.kernel_keys[line["kernel"]["id"]] = line["key"]
        self.kernel_keys.update(line.get("kernel_keys", {}))


def is_importable(name: str) -> bool:
    """Whether another process can import the module by this name, because its file lies on `sys.path`."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if spec is None or spec.name != name or not spec.has_location or name.startswith(_EXCLUDED):
        return False
    return any(folder and str(spec.origin).startswith(folder) for folder in sys.path)


_INSTRUMENT: Final = Name("vllm.tracing", "instrument", ("obj", "span_name"))
SPANS: Final = Hook(
    "spans",
    does="times the functions that vLLM marks with `@instrument`",
    without="reports lack the phases inside vLLM",
    promise="reports and `explain` name vLLM's phases",
    needs=(_INSTRUMENT,),
    places={"api", "forkserver", "template"},
)


@wraps(SPANS, _INSTRUMENT)
def _with_timing(instrument: Callable[..., Any]) -> Callable[..., Any]:
    def instrument_and_time(obj: Callable[..., Any] | None = None, **options: Any) -> Any:
        if obj is None:
            return functools.partial(instrument_and_time, **options)
        instrumented = instrument(obj, **options)
        if inspect.iscoroutinefunction(obj):  # some run as long as the server
            return instrumented
        return _timed(instrumented, _phase_name(options.get("span_name") or obj.__name__))

    return instrument_and_time


def _timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function, wrapped so that it records its time as a span, until the journal is closed."""

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        journal, record = this_start.journal, this_start.record
        if journal is None or not journal.is_open:
            return function(*args, **kwargs)
        with journal.span(name), record.phase(name) if record else nullcontext():
            return function(*args, **kwargs)

    return timed


def _phase_name(span_name: str) -> str:
    """The phase's name: `Loading (GPU)` becomes `loading_gpu`."""
    spaced = "".join(char if char.isalnum() else " " for char in span_name.lower())
    return "_".join(spaced.split())
