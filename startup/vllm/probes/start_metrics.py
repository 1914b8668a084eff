"""Adds metrics about the start to vLLM's metrics."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from base.lifecycle import GRAPHS_CAPTURED, GRAPHS_TOTAL, START_INFO, START_PHASES, StartInfo
from envs import foreign
from startup.ground.processes.library_state import update_prometheus
from startup.vllm.probes.graph_progress import GraphProgress, read_progress

logger = logging.getLogger(__name__)

_LONGEST_LABEL: Final = 200
_GRAPHS_INTERVAL_S: Final = 0.5


def export_start(info: StartInfo, phase_seconds: Mapping[str, float]) -> None:
    """Registers the values with vLLM's metrics library. If this fails, only logs a warning.

    Called in the launcher's process. Several API servers keep their metrics in files of one folder, to which
    this process adds a file. vLLM's Rust frontend has metrics of its own.
    """
    try:
        from prometheus_client import Gauge  # noqa: PLC0415 - not in each environment of this package

        update_prometheus(foreign.snapshot())
        values = (text[:_LONGEST_LABEL] for text in info)
        Gauge(*START_INFO, StartInfo._fields, multiprocess_mode="max").labels(*values).set(1)
        phases = Gauge(*START_PHASES, ("phase",), multiprocess_mode="max")
        for phase, seconds in phase_seconds.items():
            phases.labels(phase).set(seconds)
    except Exception as err:  # noqa: BLE001 - vLLM serves all the same
        _log_failure(err)


def export_graphs(folder: Path, note: Callable[[Mapping[str, Any]], None]) -> Callable[[], None]:
    """Exports the progress of the engines' CUDA graphs, and passes it to `note`.

    Returns a function that goes on with this until all graphs are captured, and logs the end.
    """
    begin_s = time.monotonic()
    gauges: list[Any] = []

    def update() -> GraphProgress | None:
        progress = read_progress(folder)
        if progress is None:
            return None
        try:
            if not gauges:
                from prometheus_client import Gauge  # noqa: PLC0415 - not in each environment of this package

                gauges.extend(Gauge(*metric, multiprocess_mode="max") for metric in (GRAPHS_CAPTURED, GRAPHS_TOTAL))
            for gauge, value in zip(gauges, progress[:2], strict=True):
                gauge.set(value)
        except Exception as err:  # noqa: BLE001 - vLLM serves all the same
            _log_failure(err)
        note({"cuda_graphs": {"captured": progress.captured, "total": progress.total}})
        return progress

    def follow() -> None:
        while (progress := update()) is not None and progress.is_pending:
            time.sleep(_GRAPHS_INTERVAL_S)
        if progress is not None and progress.failure:
            text = "only %d CUDA graphs are captured, and batches of other sizes run without: a capture failed (%s)"
            logger.warning(text, progress.captured, progress.failure)
        elif progress is not None and progress.is_late:
            text = "all %d CUDA graphs are captured, %.1f s after readiness"
            logger.info(text, progress.captured, time.monotonic() - begin_s)

    update()
    return follow


def _log_failure(err: Exception) -> None:
    logger.warning("/metrics does not show how vLLM was started: %s: %s", type(err).__name__, err)
