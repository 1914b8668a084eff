"""The metrics of a start in vLLM's metrics, and how many CUDA graphs its engines have captured."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from base.json_depth import read_json
from base.lifecycle import GRAPHS_CAPTURED, GRAPHS_GIVEN_UP, GRAPHS_TOTAL, START_INFO, START_PHASES, StartInfo
from base.machine.files import write_whole
from envs import environment
from envs.registry import env
from startup.processes.state import update_prometheus

_NAME: Final = "cuda-graphs-{}.json"
_STOPPING: Final = "cuda-graphs.stop"
"""The file that exists once the server drains."""
_CAPTURE: Final = ".capture"
"""The ending of a file with the path of a note that an engine captures (`capture_mark`)."""


class GraphProgress(NamedTuple):
    """The graphs of one engine, or of all engines of a start."""

    captured: int
    total: int
    is_late: bool = False
    """Whether graphs are captured after readiness."""
    num_given_up: int = 0
    """The graphs that are not captured, because a capture has failed."""
    reason: str = ""
    """Why graphs are given up, or why none is captured for now."""

    @property
    def is_pending(self) -> bool:
        """Whether graphs are still to be captured."""
        return self.captured + self.num_given_up < self.total

    def to_fields(self) -> dict[str, Any]:
        end = "incomplete" if self.num_given_up else "complete"
        state = "capturing" if self.is_pending else end
        fields = {"captured": self.captured, "total": self.total, "state": state}
        return {**fields, "reason": self.reason} if self.reason else fields

    def write(self, engine: int) -> None:
        """Replaces the progress of the engine with this number, if this process belongs to a start."""
        folder = env.VCLI_START_FOLDER.get()
        if folder is not None:
            with suppress(OSError):
                write_whole(Path(folder) / _NAME.format(engine), json.dumps(self._asdict()))


def read_progress(folder: Path) -> GraphProgress | None:
    """The progress of all engines of a start. None if none of them has graphs."""
    read = map(_read, folder.glob(_NAME.format("*")))
    found = [progress for progress in read if progress is not None]
    if not found:
        return None
    reason = next((each.reason for each in found if each.reason), "")
    numbers = [each[:4] for each in found]
    captured, total, num_late, num_given_up = map(sum, zip(*numbers, strict=True))
    return GraphProgress(captured, total, bool(num_late), num_given_up, reason)


def stop_capturing(folder: Path) -> None:
    """Makes the engines of this start capture no more graphs."""
    with suppress(OSError):
        (folder / _STOPPING).touch(mode=0o600)


@contextmanager
def named_capture(note: Path) -> Iterator[None]:
    """In this block, an engine captures a graph. Names its note for `forget_captures`."""
    folder = env.VCLI_START_FOLDER.get()
    if folder is None:
        yield
        return
    path = Path(folder) / f"{note.stem}{_CAPTURE}"
    with suppress(OSError):
        write_whole(path, str(note))
    yield
    with suppress(OSError):
        path.unlink(missing_ok=True)


def forget_captures(folder: Path) -> None:
    """Removes the notes of engines that are about to be killed on purpose, maybe in a capture."""
    for path in folder.glob(f"*{_CAPTURE}"):
        with suppress(OSError):
            Path(path.read_text()).unlink(missing_ok=True)


def is_stopped() -> bool:
    """Whether this engine's server drains."""
    folder = env.VCLI_START_FOLDER.get()
    return folder is not None and (Path(folder) / _STOPPING).exists()


def _read(path: Path) -> GraphProgress | None:
    with suppress(OSError, ValueError, TypeError):
        return GraphProgress(**read_json(path.read_text()))
    return None


logger = logging.getLogger(__name__)

_LONGEST_LABEL: Final = 200
_GRAPHS_INTERVAL_S: Final = 0.5


def export_start(info: StartInfo, phase_seconds: Mapping[str, float]) -> None:
    """Registers the values with vLLM's metrics library. If this fails, only logs a warning.

    Called in the launcher's process. Several API servers keep their metrics in files of one folder, to which
    this process adds a file.
    """
    try:
        from prometheus_client import Gauge  # noqa: PLC0415 - not in each environment of this package

        update_prometheus(environment.snapshot())
        values = (text[:_LONGEST_LABEL] for text in info)
        phases = Gauge(*START_PHASES, ("phase",), multiprocess_mode="max")
        for phase, seconds in phase_seconds.items():
            phases.labels(phase).set(seconds)
        Gauge(*START_INFO, StartInfo._fields, multiprocess_mode="max").labels(*values).set(1)  # after the phases
    except Exception as err:  # noqa: BLE001 - vLLM serves all the same
        _log_failure(err)


class GraphFigures:
    """Shows the progress of the engines' CUDA graphs in metrics and log, and passes it to `note`."""

    def __init__(self, folder: Path, note: Callable[[Mapping[str, Any]], None]) -> None:
        self._folder = folder
        self._note = note
        self._gauges: list[Any] = []

    def update(self) -> GraphProgress | None:
        """Shows the progress up to now. Returns None if there are no graphs."""
        progress = read_progress(self._folder)
        if progress is not None:
            try:
                self._export(progress)
            except Exception as err:  # noqa: BLE001 - vLLM serves all the same
                _log_failure(err)
            self._note(progress.to_fields())
        return progress

    def follow(self) -> None:
        """Shows the progress until all graphs are captured, and logs the end."""
        begin_s = time.monotonic()
        while (progress := self.update()) is not None and progress.is_pending:
            time.sleep(_GRAPHS_INTERVAL_S)
        if progress is not None and progress.num_given_up:
            text = "only %d of %d CUDA graphs are captured, and batches of other sizes run without: %s"
            logger.warning(text, progress.captured, progress.total, progress.reason)
        elif progress is not None and progress.is_late:
            took_s = time.monotonic() - begin_s
            logger.info("all %d CUDA graphs are captured, %.1f s after readiness", progress.captured, took_s)

    def _export(self, progress: GraphProgress) -> None:
        if not self._gauges:
            from prometheus_client import Gauge  # noqa: PLC0415 - not in each environment of this package

            update_prometheus(environment.snapshot())
            metrics = (GRAPHS_CAPTURED, GRAPHS_TOTAL, GRAPHS_GIVEN_UP)
            self._gauges += [Gauge(*metric, multiprocess_mode="max") for metric in metrics]
        values = (progress.captured, progress.total, progress.num_given_up)
        for gauge, value in zip(self._gauges, values, strict=True):
            gauge.set(value)


def _log_failure(err: Exception) -> None:
    logger.warning("/metrics does not show how vLLM was started: %s: %s", type(err).__name__, err)
