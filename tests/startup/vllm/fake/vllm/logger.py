"""Configures the log by vLLM's variable when it is imported. Each record has the process's name."""

import json
import logging
import logging.config
import os
import sys
from pathlib import Path
from typing import Any

from vllm import envs

_FORMAT = "(%(vllm_process_name)s pid=%(process)d) %(levelname)s 01-01 00:00:00 [%(filename)s:%(lineno)d] "
_names: dict[int, str] = {}


def read_config() -> dict[str, Any] | None:
    path = envs.VLLM_LOGGING_CONFIG_PATH()
    return json.loads(Path(path).read_text()) if path else None


def set_process_name(name: str) -> None:
    _names[os.getpid()] = name


class PrefixFormatter(logging.Formatter):
    """Writes the prefix before each line, as vLLM does."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(_FORMAT % vars(record) + line for line in super().format(record).splitlines())


def _configure() -> None:
    create = logging.getLogRecordFactory()

    def create_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = create(*args, **kwargs)
        record.vllm_process_name = _names.get(os.getpid(), record.processName)
        return record

    logging.setLogRecordFactory(create_record)
    if (config := read_config()) is not None:
        logging.config.dictConfig(config)
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setLevel(logging.ERROR)
    handler.setFormatter(PrefixFormatter())
    logging.getLogger("vllm").addHandler(handler)


_configure()
