"""How a process logs, as a value; nothing is imported for it."""

from dataclasses import dataclass
from typing import Any, Final, Literal

LogFormat = Literal["text", "json"]

PACKAGES: Final = ("vllm_cli", "startup", "server", "envs")
"""Roots of this project's loggers."""


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Travels to the processes that a process starts."""

    level: str
    format: LogFormat = "text"
    config: dict[str, Any] | None = None
    """A configuration for `logging.config.dictConfig`, from `--log-config-file`; it wins over the other two."""
