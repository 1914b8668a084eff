"""Settings of a process's log; imports nothing heavy."""

from dataclasses import dataclass
from typing import Any, Final, Literal

LogFormat = Literal["text", "json"]

PACKAGES: Final = ("vllm_cli", "startup", "server", "envs")
"""Roots of this project's loggers."""


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Passed on to child processes."""

    level: str
    format: LogFormat = "text"
    config: dict[str, Any] | None = None
    """Argument of `logging.config.dictConfig`, from `--log-config-file`; takes precedence over both."""
