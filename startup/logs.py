"""The logs of every process of a start: one format, to standard error, or what a configuration file says."""

import logging
import sys
from collections.abc import Callable
from typing import Final

from startup.log_options import LogOptions

PACKAGES: Final = ("vllm_cli", "startup", "server", "envs")
"""Roots of this project's loggers."""

_TEXT: Final = "%(levelname)s %(asctime)s (%(role)s) %(name)s: %(message)s"


class RoleFormatter(logging.Formatter):
    """Knows what this process is, which a record does not."""

    def __init__(self, role: str, layout: str | None = None, *, datefmt: str | None = None) -> None:
        super().__init__(layout, datefmt=datefmt)
        self.role = role


class TextFormatter(RoleFormatter):
    """Level, time, role of the process, module, message."""

    def __init__(self, role: str) -> None:
        super().__init__(role, _TEXT, datefmt="%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Adds the role."""
        record.role = self.role
        return super().formatMessage(record)


def configure_logging(options: LogOptions, *, role: str, phase: Callable[[], str] = lambda: "") -> None:
    """Sends this project's logs to standard error from the level on; other libraries speak from WARNING on.

    Args:
        role: what this process is: `api`, `engine`, `responder`, ...
        phase: tells what the process is at; asked with each line of JSON.

    Raises:
        ConfigError: the configuration file cannot be applied.
    """
    if options.config is not None:
        from startup.log_config import apply_log_config

        apply_log_config(options.config)
        return
    handler: logging.Handler = logging.StreamHandler(getattr(sys.stderr, "below", sys.stderr))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in (*PACKAGES, "uvicorn"):
        logging.getLogger(name).setLevel(options.level)
    if options.format == "json":
        from startup.json_logs import JsonFormatter, turn_into_lines

        handler.setFormatter(JsonFormatter(role, phase))
        turn_into_lines()
    else:
        handler.setFormatter(TextFormatter(role))


def rename_process(role: str) -> None:
    """What a forked process calls itself, once it goes its own way."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, RoleFormatter):
            handler.formatter.role = role
