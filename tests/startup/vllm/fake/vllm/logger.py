"""Configures the log by vLLM's variable on import, with the process's name in each record."""

import json
import logging
import logging.config
import os
from pathlib import Path
from typing import Any

from vllm import envs

_names: dict[int, str] = {}


def read_config() -> dict[str, Any] | None:
    path = envs.VLLM_LOGGING_CONFIG_PATH()
    return json.loads(Path(path).read_text()) if path else None


def set_process_name(name: str) -> None:
    _names[os.getpid()] = name


def _configure() -> None:
    create = logging.getLogRecordFactory()

    def create_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = create(*args, **kwargs)
        record.vllm_process_name = _names.get(os.getpid(), record.processName)
        return record

    logging.setLogRecordFactory(create_record)
    if (config := read_config()) is not None:
        logging.config.dictConfig(config)


_configure()
