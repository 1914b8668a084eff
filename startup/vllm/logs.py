"""The launcher's own log, separate from vLLM's and without changes to vLLM's configuration."""

import logging
from collections.abc import Callable

from envs.registry import env
from startup.logs.formatters import RoleFormatter, TextFormatter, real_stderr
from startup.logs.json_lines import JsonFormatter


def log_as(role: str, log_format: str, phase: Callable[[], str] = lambda: "") -> None:
    """Sends the records of our packages to standard error; the root logger and vLLM's stay unchanged."""
    handler = logging.StreamHandler(real_stderr())
    handler.setFormatter(_create_formatter(role, log_format, phase))
    for package in ("startup", "server"):
        ours = logging.getLogger(package)
        ours.handlers[:] = [handler]
        ours.propagate = False
        ours.setLevel(env.VLLM_LOGGING_LEVEL.get())


def _create_formatter(role: str, log_format: str, phase: Callable[[], str]) -> RoleFormatter:
    if log_format == "json":
        return JsonFormatter(role, phase)
    return TextFormatter(role)
