"""Keeps the weights of a standby's models in the page cache: reads them again when they were evicted."""

import logging
import time
from typing import Final, Self

from startup.config import ModelConfig
from startup.model.location import locate
from startup.model.prefetch_plan import plan_files
from startup.prefetch.process import PrefetchHandle, start_prefetch

logger = logging.getLogger(__name__)

_PERIOD_S: Final = 60.0


class ModelPages:
    """Reads within the limits of every prefetch (`startup.prefetch.survey`); no page is locked."""

    def __init__(self, models: tuple[str, ...]) -> None:
        self._models = models
        self._next_s = 0.0
        self._running: PrefetchHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running is not None:
            self._running.close()

    def keep(self) -> None:
        """Called regularly; reads once a minute, in a helper process, what is not resident."""
        if self._running is not None and (report := self._running.result()) is not None:
            logger.debug("%s", report)
            self._running = None
        if self._models and self._running is None and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _PERIOD_S
            located = [locate(ModelConfig(model=model)).files for model in self._models]
            paths = [path for files in located if files is not None for path in plan_files(files)]
            self._running = start_prefetch(paths)
