"""Sets up the log of a process: one format on standard error, or the settings of a configuration file.

This module imports nothing heavy. `formatters` makes lines of text, and `json_lines` makes lines of JSON.
"""

import copy
import logging
import sys
from collections.abc import Callable
from typing import Any, Final, TextIO, cast

from base.errors import ConfigError
from base.machine.standard_streams import take_lost
from envs.registry import env
from startup.logs.formatters import RoleFormatter, TextFormatter
from startup.logs.options import LogFormat, LogOptions

_VLLM: Final = "vllm"
_VLLM_FORMATTER: Final = "NewLineFormatter"
"""vLLM's class of formatters, which only splits lines."""

PACKAGES: Final = ("vllm_cli", "router", "startup", "server", "base", "envs")
"""Roots of this project's loggers."""


def configure_logging(options: LogOptions, *, role: str, phase: Callable[[], str] = lambda: "") -> None:
    """Makes this process log to standard error, or as `options.config` says.

    Logs records of this project and uvicorn from the given level on, and other records from WARNING on.

    Args:
        role: the role of this process: `api`, `engine`, `responder`, ...
        phase: returns the current phase of this process. Called for each line of JSON.

    Raises:
        ConfigError: the configuration file cannot be applied.
    """
    if options.config is not None:
        _apply_config_file(options.config)
        return
    handler = _handler(role, options.format, phase)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in (*PACKAGES, "uvicorn"):
        logging.getLogger(name).setLevel(options.level)
    if options.format == "json":
        from startup.logs.json_lines import log_everything_as_json

        log_everything_as_json(handler)


def configure_own_loggers(role: str, log_format: str, phase: Callable[[], str] = lambda: "") -> None:
    """Makes vLLM's launcher log this project's records to standard error. Does not change other loggers."""
    handler = _handler(role, log_format, phase)
    for package in ("startup", "server"):
        ours = logging.getLogger(package)
        ours.handlers[:] = [handler]
        ours.propagate = False
        ours.setLevel(env.VLLM_LOGGING_LEVEL.get())


def _handler(role: str, log_format: str, phase: Callable[[], str]) -> logging.Handler:
    handler = SteadyHandler(real_stderr())
    if log_format == "json":
        from startup.logs.json_lines import JsonFormatter

        handler.setFormatter(JsonFormatter(role, phase))
    else:
        handler.setFormatter(TextFormatter(role, is_utc=log_format == "text-utc"))
    return handler


def log_failure(message: str, code: str) -> bool:
    """Logs the error that ends this process if the log format is JSON. Returns whether it is JSON."""
    from startup.logs.json_lines import JsonFormatter

    for handler in (*logging.getLogger("startup").handlers, *logging.getLogger().handlers):
        if isinstance(handler.formatter, JsonFormatter):
            record = logging.LogRecord("startup", logging.ERROR, "", 0, "%s", (message,), None)
            record.code = code
            handler.handle(record)
            return True
    return False


def log_options_of_environment() -> LogOptions:
    """The log options from the environment, for a process that gets no flags."""
    log_format = cast("LogFormat", env.VCLI_LOG_FORMAT.get())
    return LogOptions(level=env.VLLM_LOGGING_LEVEL.get(), format=log_format)


def rename_process(role: str) -> None:
    """Changes the role in this process's log lines. Called in a forked process."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, RoleFormatter):
            handler.formatter.role = role


class SteadyHandler(logging.StreamHandler[TextIO]):
    """Drops lines that cannot be written, and logs their number before the next line that can be written.

    The logging module would instead write a traceback for each failure, to the same stream.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._num_dropped = 0
        self._reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        if self._num_dropped:
            self._log_dropped(record)
        super().emit(record)
        if (lost := take_lost(self.stream)) is not None:
            self._drop(lost)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Counts failures of the stream. Prints any other exception, which is an error in the program."""
        err = sys.exc_info()[1]
        if isinstance(err, OSError):
            self._drop(err)
        else:
            super().handleError(record)

    def _drop(self, err: OSError) -> None:
        self._num_dropped += 1
        self._reason = err.strerror or str(err)

    def _log_dropped(self, record: logging.LogRecord) -> None:
        num_dropped, self._num_dropped = self._num_dropped, 0
        message = "%d lines of this log were lost: standard error could not be written (%s)"
        args = (num_dropped, self._reason)
        note = logging.LogRecord(__name__, logging.WARNING, record.pathname, 0, message, args, None)
        super().emit(note)
        if take_lost(self.stream) is not None or self._num_dropped:  # still failing: the note itself does not count
            self._num_dropped = num_dropped


def _apply_config_file(config: dict[str, Any]) -> None:
    """Applies the configuration as vLLM does. Raises ConfigError if it is invalid or a name is unknown."""
    from logging.config import dictConfig  # noqa: PLC0415 - needed only for such a file

    try:
        dictConfig(translate(config))
    except (ValueError, TypeError, AttributeError, ImportError) as err:
        reason = f"{err}: {err.__cause__}" if err.__cause__ else str(err)
        raise ConfigError("--log-config-file", reason, "a configuration that can be applied") from err


def translate(config: dict[str, Any]) -> dict[str, Any]:
    """Adapts a configuration for vLLM. Its settings of vLLM's logger also apply to this project's loggers."""
    config = copy.deepcopy(config)
    loggers = config.setdefault("loggers", {})
    if _VLLM in loggers:
        for name in PACKAGES:
            loggers.setdefault(name, copy.deepcopy(loggers[_VLLM]))
    for formatter in config.get("formatters", {}).values():
        name = str(formatter.get("class", ""))
        if name.startswith(_VLLM) and name.endswith(_VLLM_FORMATTER):
            del formatter["class"]
    config.setdefault("disable_existing_loggers", False)
    return config


def real_stderr() -> TextIO:
    """Standard error itself, even if a `LineStream` has replaced `sys.stderr`."""
    stream: TextIO = getattr(sys.stderr, "below", sys.stderr)
    return stream
