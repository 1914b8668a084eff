"""Makes vLLM's processes log in the format of `--log-format`, through VLLM_LOGGING_CONFIG_PATH.

The variable names a configuration file. Every process of vLLM applies the file when it imports vLLM, and
uvicorn applies it at its start. JSON lines have the same fields as the launcher's lines. Other output on
standard error (tracebacks of an exiting process, warnings, progress bars) becomes JSON lines, too. The format
`text-utc` changes only the date in vLLM's layout.
"""

import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from base.access_log import ACCESS_LOGGER
from envs import foreign
from envs.registry import env
from startup.hook import Hook, Name, Text
from startup.imports.finder import wraps
from startup.logs.formatters import UTC
from startup.logs.json_lines import JsonFormatter, log_everything_as_json
from startup.logs.options import LogFormat
from startup.logs.setup import real_stderr
from startup.vllm_arguments.installed import InstalledVllm
from startup.vllm_arguments.vllm_line import VllmLine

_DECORATE_LOGS: Final = Name("vllm.utils.system_utils", "decorate_logs", ("process_name", "skip_if_decorated"))
JSON_LOGS: Final = Hook(
    "JSON logs",
    does="configures vLLM's log, and puts the names of processes into its records",
    without="only the launcher's lines are JSON, or have multiprocessing's names",
    promise="`--log-format json` applies to every line",
    needs=(Text("vllm.logger", r"envs\.VLLM_LOGGING_CONFIG_PATH", "VLLM_LOGGING_CONFIG_PATH"),),
)
STREAM_PREFIXES: Final = JSON_LOGS.part(_DECORATE_LOGS, until=(0, 30), places={"api", "forkserver", "template"})
PROCESS_NAMES: Final = JSON_LOGS.part(
    Text("vllm.logger", r"record\.vllm_process_name\b", "vllm_process_name"), since=(0, 31)
)

_LAYOUT: Final = "%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s"
"""vLLM's layout of a line, without the process's name at the beginning."""
_FILE: Final = "logging.json"
_STDERR: Final = "ext://sys.stderr"
_STDOUT: Final = "ext://sys.stdout"
_OWN_SETTINGS: Final = ("--log-config-file", "--logging-config")
_RAY_SETTINGS: Final = ("--distributed-executor-backend", "--data-parallel-backend")


class VllmJsonFormatter(JsonFormatter):
    """Formats records as JSON. The `role` is vLLM's name for the process, such as `APIServer` or `Worker`."""

    def __init__(self) -> None:
        super().__init__("", None)
        self._role: dict[int, str] = {}

    def role_of(self, record: logging.LogRecord) -> str:
        """vLLM's name for the process, which the text format writes before each line."""
        given = getattr(record, "vllm_process_name", None)
        return str(given or self._role.get(os.getpid(), record.processName))

    def name_role(self, role: str) -> None:
        """Sets this process's name, for versions of vLLM whose records lack it."""
        self._role = {os.getpid(): role}


class VllmUtcFormatter(logging.Formatter):
    """Formats records in vLLM's layout, with year and time zone in the date."""

    def __init__(self, *, has_process: bool) -> None:
        """Without `has_process`, vLLM itself writes the process before each line."""
        process = "(%(vllm_process_name)s pid=%(process)d) " if has_process else ""
        super().__init__(f"{foreign.text_of('VLLM_LOGGING_PREFIX')}{process}{_LAYOUT}", UTC)
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """Formats one record. Each of its lines begins with vLLM's prefix."""
        record.vllm_process_name = getattr(record, "vllm_process_name", None) or record.processName
        text = super().format(record)
        prefix = self.formatMessage(record).removesuffix(record.message)
        return text.replace("\n", f"\n{prefix}")


def create_error_handler() -> logging.Handler:
    """Turns all output on standard error into JSON lines. The returned handler uses the original stream."""
    handler = logging.StreamHandler(real_stderr())
    log_everything_as_json(handler)
    return handler


def set_log_format(log_format: LogFormat, vllm: InstalledVllm, line: VllmLine, folder: Path) -> str | None:
    """Makes vLLM's processes log in this format. Returns a warning for the user if they cannot.

    `text` is vLLM's own format. The configuration is written to `folder`, which must exist while vLLM runs.
    """
    if log_format == "text":
        return None
    if (reason := _obstacle(vllm, line, is_json=log_format == "json")) is not None:
        return f"--log-format {log_format} applies only to vllm-cli's own lines: {reason}"
    path = folder / _FILE
    path.write_text(json.dumps(_configuration(line, is_json=log_format == "json")))
    os.environ[env.VLLM_LOGGING_CONFIG_PATH.name] = str(path)
    return None


def _obstacle(vllm: InstalledVllm, line: VllmLine, *, is_json: bool) -> str | None:
    """Why vLLM cannot log in a format other than its own. None if it can."""
    if env.VLLM_LOGGING_CONFIG_PATH.raw or line.has(*_OWN_SETTINGS):
        return "vLLM's log has a configuration of its own"
    if foreign.text_of("VLLM_CONFIGURE_LOGGING") not in ("", "1"):
        return "VLLM_CONFIGURE_LOGGING disables the configuration of vLLM's log"
    if not JSON_LOGS.applies:
        return f"vLLM {vllm.version} configures its log in another way"
    is_spawned = env.VLLM_WORKER_MULTIPROC_METHOD.get() == "spawn"
    if is_json and STREAM_PREFIXES.is_for(vllm.release) and (is_spawned or not STREAM_PREFIXES.applies):
        return f"vLLM {vllm.version} writes the process before each line, which breaks JSON"
    if any(line.value(name) == "ray" for name in _RAY_SETTINGS):
        return "Ray starts processes on machines that do not have the configuration"
    return None


def _configuration(line: VllmLine, *, is_json: bool) -> dict[str, Any]:
    """The argument of `logging.config.dictConfig`, with the levels and streams of vLLM and uvicorn."""
    stream = foreign.text_of("VLLM_LOGGING_STREAM") or _STDOUT
    formatter: dict[str, Any] = {"()": f"{__name__}.{VllmJsonFormatter.__name__}"}
    if not is_json:
        formatter = {"()": f"{__name__}.{VllmUtcFormatter.__name__}", "has_process": PROCESS_NAMES.applies}
    access: dict[str, Any] = {"class": "logging.StreamHandler", "formatter": "line", "stream": _STDOUT}
    errors = {**access, "stream": _STDERR}
    if is_json:
        errors = {"()": f"{__name__}.create_error_handler", "formatter": "line"}
    records = errors if stream == _STDERR else {**access, "stream": stream}
    level = line.value("--log-level") or env.VLLM_LOGGING_LEVEL.get()
    paths = [path.strip() for path in (line.value("--disable-access-log-for-endpoints") or "").split(",")]
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": formatter},
        "filters": {"paths": {"()": "base.access_log.PathFilter", "paths": [path for path in paths if path]}},
        "handlers": {"records": records, "access": access, "errors": errors},
        "loggers": {
            "vllm": {"handlers": ["records"], "level": level.upper(), "propagate": False},
            "uvicorn": {"handlers": ["errors"], "level": "INFO", "propagate": False},
            ACCESS_LOGGER: {"handlers": ["access"], "filters": ["paths"], "level": "INFO", "propagate": False},
        },
        "root": {"handlers": ["errors"], "level": "WARNING"},
    }


@wraps(STREAM_PREFIXES, _DECORATE_LOGS)
def _decorate_text_only(decorate: Callable[..., None]) -> Callable[..., None]:
    """JSON lines name the process in a member, not in a prefix."""

    def decorate_text(process_name: str | None = None, *, skip_if_decorated: bool = False) -> None:
        formatters = _json_formatters()
        for formatter in formatters:
            formatter.name_role(process_name or multiprocessing.current_process().name)
        if not formatters:
            decorate(process_name, skip_if_decorated=skip_if_decorated)

    return decorate_text


def _json_formatters() -> list[VllmJsonFormatter]:
    """The JSON formatters of all configured loggers. Empty if this process logs text."""
    loggers = (logging.getLogger(name) for name in (None, "vllm", "uvicorn", "uvicorn.access"))
    formatters = {handler.formatter for logger in loggers for handler in logger.handlers}
    return [formatter for formatter in formatters if isinstance(formatter, VllmJsonFormatter)]
