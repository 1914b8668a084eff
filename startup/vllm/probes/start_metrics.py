"""Adds metrics about the start to vLLM's metrics."""

import logging
from collections.abc import Mapping
from typing import Final

from base.lifecycle import START_INFO, START_PHASES, StartInfo
from envs import foreign
from startup.ground.processes.library_state import update_prometheus

logger = logging.getLogger(__name__)

_LONGEST_LABEL: Final = 200


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
        logger.warning("/metrics does not show how vLLM was started: %s: %s", type(err).__name__, err)
