"""Applies the file of `--log-config-file`: a configuration for `logging.config.dictConfig`, as in vLLM."""

import copy
import logging.config
from typing import Any, Final

from server.errors import ConfigError
from startup.logs.options import PACKAGES

_VLLM: Final = "vllm"
_VLLM_FORMATTER: Final = "NewLineFormatter"
"""A class of vLLM, which only splits lines."""


def apply_log_config(config: dict[str, Any]) -> None:
    """Configures this process's logging.

    Raises:
        ConfigError: the configuration is invalid, or names a class or level that does not exist.
    """
    try:
        logging.config.dictConfig(translate(config))
    except (ValueError, TypeError, AttributeError, ImportError) as err:
        reason = f"{err}: {err.__cause__}" if err.__cause__ else str(err)
        raise ConfigError("--log-config-file", reason, "a configuration that can be applied") from err


def translate(config: dict[str, Any]) -> dict[str, Any]:
    """Adapts a file written for vLLM: settings of its logger also apply to this project's loggers."""
    config = copy.deepcopy(config)
    loggers = config.setdefault("loggers", {})
    if _VLLM in loggers:
        for name in PACKAGES:
            loggers.setdefault(name, copy.deepcopy(loggers[_VLLM]))
    for formatter in config.get("formatters", {}).values():
        if str(formatter.get("class", "")).startswith(_VLLM) and formatter["class"].endswith(_VLLM_FORMATTER):
            del formatter["class"]
    config.setdefault("disable_existing_loggers", False)
    return config
