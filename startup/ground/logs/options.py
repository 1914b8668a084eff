"""Settings of a process's log; imports nothing, as help and usage errors need it."""

from dataclasses import dataclass
from typing import Any, Literal

LogFormat = Literal["text", "text-utc", "json"]


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Passed on to child processes."""

    level: str
    format: LogFormat = "text"
    config: dict[str, Any] | None = None
    """Argument of `logging.config.dictConfig`, from `--log-config-file`; takes precedence over both."""
