"""The access log: its level, excluded paths, and masked secrets. Standard library only."""

import logging
import re
from collections.abc import Iterable
from typing import Any, Final

from base.server_settings import LoggingConfig
from envs.redaction import MASK, SECRET_ENDINGS

ACCESS_LOGGER: Final = "uvicorn.access"
"""vLLM's name of this logger, by which --log-config and our log formats know it."""
ACCESS_LINE: Final = '%s - "%s %s HTTP/%s" %d'
"""The form of a line. Its arguments are client, method, path, version and status."""
_PATH: Final = 2
"""Index of the path in these arguments."""
_LEVELS: Final = {"trace": 5, "debug": 10, "info": 0, "warning": 30, "error": 40, "critical": 50}
"""Value of --uvicorn-log-level -> the access log's level. With the default, `--log-level` decides."""
_SECRET: Final = re.compile(f"key|token|secret|passw|auth|sig|(?:{'|'.join(SECRET_ENDINGS)})(?==)", re.IGNORECASE)
"""Matches the name of a query parameter that may be secret. Clients choose names, so this is longer than the
list in `envs.redaction`."""
_MOST_LOGGED: Final = 2048
"""The most characters that are logged of a path with its query. A client may send 64 KB."""


class PathFilter(logging.Filter):
    """Drops log lines about the given paths, with any query."""

    def __init__(self, paths: Iterable[str]) -> None:
        super().__init__()
        self._paths = frozenset(paths)

    def filter(self, record: logging.LogRecord) -> bool:
        args = _arguments(record)
        return args is None or str(args[_PATH]).partition("?")[0] not in self._paths


class QueryMask(logging.Filter):
    """Masks secrets in the query of a logged request, and shortens a long path."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Changes the path in the record. Returns True, because every record is logged."""
        args = _arguments(record)
        if args is not None:
            path = _shown(str(args[_PATH]))
            record.args = (*args[:_PATH], path, *args[_PATH + 1 :])
        return True


def open_access_log(config: LoggingConfig) -> logging.Logger | None:
    """Sets the level, and replaces the filters. Returns None if requests are not logged."""
    logger = logging.getLogger(ACCESS_LOGGER)
    logger.setLevel(_LEVELS[config.uvicorn_log_level])
    logger.filters[:] = [kept for kept in logger.filters if not isinstance(kept, PathFilter | QueryMask)]
    logger.addFilter(PathFilter(config.disable_access_log_for_endpoints))
    logger.addFilter(QueryMask())
    return None if config.disable_access_log else logger


def _shown(path: str) -> str:
    shown, mark, query = path[:_MOST_LOGGED].partition("?")
    shown += mark + "&".join(map(_masked, query.split("&")))
    return shown if max(len(path), len(shown)) <= _MOST_LOGGED else f"{shown[:_MOST_LOGGED]}..."


def _masked(parameter: str) -> str:
    secret = _SECRET.search(parameter.replace("-", "_"))
    end = parameter.find("=", secret.end()) + 1 if secret else 0
    return parameter[:end] + MASK if 0 < end < len(parameter) else parameter


def _arguments(record: logging.LogRecord) -> tuple[Any, ...] | None:
    """The arguments of a record of the access log. None if the record has another form."""
    args = record.args
    return args if isinstance(args, tuple) and len(args) > _PATH else None
