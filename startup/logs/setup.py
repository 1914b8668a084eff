"""Sets up the log of a process: one format, to standard error, or as a configuration file demands."""

import logging
from collections.abc import Callable
from typing import cast

from envs.registry import env
from startup.logs.formatters import RoleFormatter, TextFormatter, real_stderr
from startup.logs.options import PACKAGES, LogFormat, LogOptions
from startup.logs.steady_handler import SteadyHandler


def configure_logging(options: LogOptions, *, role: str, phase: Callable[[], str] = lambda: "") -> None:
    """Logs this project's records from the level on to standard error, those of libraries from WARNING on.

    Args:
        role: of this process: `api`, `engine`, `responder`, ...
        phase: returns the current phase of this process; called for each line of JSON.

    Raises:
        ConfigError: the configuration file cannot be applied.
    """
    if options.config is not None:
        from startup.logs.config_file import apply_log_config

        apply_log_config(options.config)
        return
    handler: logging.Handler = SteadyHandler(real_stderr())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in (*PACKAGES, "uvicorn"):
        logging.getLogger(name).setLevel(options.level)
    if options.format == "json":
        from startup.logs.json_lines import JsonFormatter, log_everything_as_json

        handler.setFormatter(JsonFormatter(role, phase))
        log_everything_as_json()
    else:
        handler.setFormatter(TextFormatter(role))


def log_options_of_environment() -> LogOptions:
    """The options of a process that has no flags for them."""
    return LogOptions(level=env.VLLM_LOGGING_LEVEL.get(), format=cast("LogFormat", env.VCLI_LOG_FORMAT.get()))


def rename_process(role: str) -> None:
    """Changes the role in the log lines of this process; called in a forked process."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, RoleFormatter):
            handler.formatter.role = role
