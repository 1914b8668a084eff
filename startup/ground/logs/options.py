"""The log settings of a process. Imports nothing, because help and usage errors need them."""

from dataclasses import dataclass
from typing import Any, Literal

LogFormat = Literal["text", "text-utc", "json"]


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """The log settings, which are passed on to child processes."""

    level: str
    format: LogFormat = "text"
    config: dict[str, Any] | None = None
    """Argument of `logging.config.dictConfig`, from `--log-config-file`. Replaces level and format."""
