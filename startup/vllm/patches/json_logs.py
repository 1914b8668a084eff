"""Makes vLLM's processes log JSON lines with this program's fields, through VLLM_LOGGING_CONFIG_PATH.

Every process of vLLM applies the configuration when it imports vLLM, and uvicorn when it starts. Other output
on standard error (tracebacks of an exiting process, warnings, progress bars) becomes JSON lines too.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any, Final

from envs import foreign
from envs.registry import env
from server.access_log import ACCESS_LOGGER
from startup.hooks.left_out import applies
from startup.hooks.of_vllm import JSON_LOGS, STREAM_PREFIXES
from startup.logs.formatters import real_stderr
from startup.logs.json_lines import JsonFormatter, log_everything_as_json
from startup.vllm.command_line import CommandLine
from startup.vllm.installed import InstalledVllm
from startup.vllm.start_method import wanted_start_method

_FILE: Final = "logging.json"
_STDERR: Final = "ext://sys.stderr"
_STDOUT: Final = "ext://sys.stdout"
_OWN_SETTINGS: Final = ("--log-config-file", "--logging-config")
_RAY_SETTINGS: Final = ("--distributed-executor-backend", "--data-parallel-backend")


class VllmJsonFormatter(JsonFormatter):
    """Formats records as JSON; the role is vLLM's name of the process, such as `APIServer` or `Worker`."""

    def __init__(self) -> None:
        super().__init__("", None)
        self._role: dict[int, str] = {}

    def role_of(self, record: logging.LogRecord) -> str:
        """The name that vLLM's text format puts in front of each line."""
        return str(getattr(record, "vllm_process_name", None) or self._role.get(os.getpid(), record.processName))

    def name_role(self, role: str) -> None:
        """Sets this process's name, for versions of vLLM whose records do not have it."""
        self._role = {os.getpid(): role}


def create_error_handler() -> logging.Handler:
    """Redirects standard error, so that other output becomes JSON lines, and logs to the original stream."""
    log_everything_as_json()
    return logging.StreamHandler(real_stderr())


def log_as_json(vllm: InstalledVllm, line: CommandLine, folder: Path) -> str | None:
    """Makes the processes that this one starts log JSON.

    Args:
        vllm: the installed vLLM.
        line: vLLM's command line, with its settings for the log.
        folder: where the configuration is written; it must exist as long as vLLM runs.

    Returns:
        A warning for the user; None if vLLM logs JSON.
    """
    if (reason := _obstacle_to_json(vllm, line)) is not None:
        return f"--log-format json applies only to vllm-cli's own lines: {reason}"
    path = folder / _FILE
    path.write_text(json.dumps(_configuration(line)))
    os.environ[env.VLLM_LOGGING_CONFIG_PATH.name] = str(path)
    return None


def undo_log_as_json(folder: Path) -> None:
    """Unsets the variable of `log_as_json`, which the next start would take for the user's own setting."""
    if env.VLLM_LOGGING_CONFIG_PATH.raw == str(folder / _FILE):
        os.environ.pop(env.VLLM_LOGGING_CONFIG_PATH.name, None)


def _obstacle_to_json(vllm: InstalledVllm, line: CommandLine) -> str | None:
    """Why vLLM cannot log JSON; None if it can."""
    if env.VLLM_LOGGING_CONFIG_PATH.raw or any(name.startswith(_OWN_SETTINGS) for name in line.values):
        return "vLLM's log has a configuration of its own"
    if foreign.text_of("VLLM_CONFIGURE_LOGGING") not in ("", "1"):
        return "VLLM_CONFIGURE_LOGGING disables the configuration of vLLM's log"
    if not applies(JSON_LOGS):
        return f"vLLM {vllm.version} configures its log in another way"
    if STREAM_PREFIXES.is_for(vllm.release) and (not applies(STREAM_PREFIXES) or wanted_start_method() == "spawn"):
        return f"vLLM {vllm.version} writes the process before each line, which breaks JSON"
    if any(line.values.get(name) == "ray" for name in _RAY_SETTINGS):
        return "Ray starts processes on machines that do not have the configuration"
    return None


def _configuration(line: CommandLine) -> dict[str, Any]:
    """The argument of `logging.config.dictConfig`; levels and streams are those of vLLM and uvicorn."""
    stream = foreign.text_of("VLLM_LOGGING_STREAM") or _STDOUT
    errors = {"()": f"{__name__}.create_error_handler", "formatter": "json"}
    access = {"class": "logging.StreamHandler", "formatter": "json", "stream": _STDOUT}
    records = errors if stream == _STDERR else {**access, "stream": stream}
    level = line.values.get("--log-level") or env.VLLM_LOGGING_LEVEL.get()
    paths = [path.strip() for path in line.values.get("--disable-access-log-for-endpoints", "").split(",")]
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": f"{__name__}.{VllmJsonFormatter.__name__}"}},
        "filters": {"paths": {"()": "server.access_log.PathFilter", "paths": [path for path in paths if path]}},
        "handlers": {"records": records, "access": access, "errors": errors},
        "loggers": {
            "vllm": {"handlers": ["records"], "level": level.upper(), "propagate": False},
            "uvicorn": {"handlers": ["errors"], "level": "INFO", "propagate": False},
            ACCESS_LOGGER: {"handlers": ["access"], "filters": ["paths"], "level": "INFO", "propagate": False},
        },
        "root": {"handlers": ["errors"], "level": "WARNING"},
    }
