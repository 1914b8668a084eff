"""The log settings of a process. This module imports little, because help and usage errors need it."""

from dataclasses import dataclass
from typing import Any, Literal

LogFormat = Literal["text", "text-utc", "json"]


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """The log settings of a server. Child processes receive them, too."""

    level: str
    format: LogFormat = "text"
    config: dict[str, Any] | None = None
    """The argument for `logging.config.dictConfig`, from `--log-config-file`. Replaces level and format."""
