"""Keeps vLLM 0.28 to 0.30 from writing the process's name before each line of its streams, in JSON logs.

Later versions have the name in their log records.
"""

import logging
import multiprocessing
from typing import Any

from startup.hooks.left_out import applies
from startup.hooks.of_vllm import DECORATE_LOGS, STREAM_PREFIXES
from startup.imports.finder import after_import
from startup.vllm.patches.json_logs import VllmJsonFormatter


def omit_prefixes_in_json() -> None:
    """From now on, processes that log JSON have their name in each record instead; so do their forks."""
    if applies(STREAM_PREFIXES):
        after_import(DECORATE_LOGS.module, _replace_decoration)


def _replace_decoration(system_utils: Any) -> None:
    decorate = DECORATE_LOGS.get(system_utils)

    def decorate_text(process_name: str | None = None, *, skip_if_decorated: bool = False) -> None:
        formatters = _json_formatters()
        for formatter in formatters:
            formatter.name_role(process_name or multiprocessing.current_process().name)
        if not formatters:
            decorate(process_name, skip_if_decorated=skip_if_decorated)

    DECORATE_LOGS.replace(system_utils, decorate_text)


def _json_formatters() -> list[VllmJsonFormatter]:
    """The formatters of all configured loggers; empty if this process logs text."""
    loggers = (logging.getLogger(name) for name in (None, "vllm", "uvicorn", "uvicorn.access"))
    formatters = {handler.formatter for logger in loggers for handler in logger.handlers}
    return [formatter for formatter in formatters if isinstance(formatter, VllmJsonFormatter)]
