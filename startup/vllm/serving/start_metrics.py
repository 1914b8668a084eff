"""Adds metrics about the start to vLLM's metrics."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from base.lifecycle import GRAPHS_CAPTURED, GRAPHS_GIVEN_UP, GRAPHS_TOTAL, START_INFO, START_PHASES, StartInfo
from envs import environment
from startup.processes.state import update_prometheus
from startup.vllm.serving.graph_progress import GraphProgress, read_progress

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
