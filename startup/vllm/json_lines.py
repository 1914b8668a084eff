"""vLLM's own lines as JSON, in the shape of ours: a configuration for Python's logging, by vLLM's own variable for it.

Every process of vLLM applies it when it imports vLLM, and uvicorn when it starts. What else is written to standard
error there (tracebacks of a process that ends, warnings, a library's bar of progress) then comes as JSON, too.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any, Final

from envs import foreign
from envs.registry import env
from server.access_log import ACCESS_LOGGER
from startup.logs.formatters import real_stderr
from startup.logs.json_lines import JsonFormatter, log_everything_as_json
from startup.vllm.command_line import CommandLine
from startup.vllm.installed import InstalledVllm

_FILE: Final = "logging.json"
_STDERR: Final = "ext://sys.stderr"
_STDOUT: Final = "ext://sys.stdout"
_OWN_SETTINGS: Final = ("--log-config-file", "--logging-config")
_RAY_SETTINGS: Final = ("--distributed-executor-backend", "--data-parallel-backend")


class VllmJsonFormatter(JsonFormatter):
    """The role is vLLM's name for the process: `APIServer`, `EngineCore`, `Worker`, ..."""

    def __init__(self) -> None:
        super().__init__("", None)

    def role_of(self, record: logging.LogRecord) -> str:
        """As vLLM's text has it in front of each line."""
        return str(getattr(record, "vllm_process_name", None) or record.processName)


def create_error_handler() -> logging.Handler:
    """Writes to standard error, past what turns other things that are written there into lines; that is set up here."""
    log_everything_as_json()
    return logging.StreamHandler(real_stderr())


def log_as_json(vllm: InstalledVllm, line: CommandLine, folder: Path) -> str | None:
    """Has the processes that this one starts log as JSON; returns why not, where that cannot be.

    Args:
        folder: where the configuration is written; it must last as long as vLLM runs.
    """
    if (reason := _why_not(vllm, line)) is not None:
        return f"--log-format json is for vllm-cli's own lines here: {reason}"
    path = folder / _FILE
    path.write_text(json.dumps(_configuration(line)))
    os.environ[env.VLLM_LOGGING_CONFIG_PATH.name] = str(path)
    return None


def undo_log_as_json(folder: Path) -> None:
    """Takes back what `log_as_json` did with this folder, if anything: it would be taken for the user's own."""
    if env.VLLM_LOGGING_CONFIG_PATH.raw == str(folder / _FILE):
        os.environ.pop(env.VLLM_LOGGING_CONFIG_PATH.name, None)


def _why_not(vllm: InstalledVllm, line: CommandLine) -> str | None:
    if env.VLLM_LOGGING_CONFIG_PATH.raw or any(name.startswith(_OWN_SETTINGS) for name in line.values):
        return "vLLM has a configuration of its own for its log"
    if foreign.text_of("VLLM_CONFIGURE_LOGGING") not in ("", "1"):
        return "VLLM_CONFIGURE_LOGGING has vLLM leave its log alone"
    if not vllm.puts_process_into_records:
        return f"vLLM {vllm.version} writes the process before each line, and so would break the JSON"
    if any(line.values.get(name) == "ray" for name in _RAY_SETTINGS):
        return "Ray starts processes on machines that do not have the configuration"
    return None


def _configuration(line: CommandLine) -> dict[str, Any]:
    """For `logging.config.dictConfig`; levels and streams are those that vLLM and uvicorn would have chosen."""
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
