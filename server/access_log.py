"""What of uvicorn's access log is written: not all paths, and no secrets; standard library only."""

import logging
import re
from collections.abc import Iterable
from typing import Any, Final

from envs.redaction import MASK

ACCESS_LOGGER: Final = "uvicorn.access"
_PATH: Final = 2
"""Where uvicorn puts the path among a record's arguments: client, method, path, version, status."""
_SECRET: Final = re.compile(r"([?&][^=&]*(?:key|token|secret|passw|auth|sig)[^=&]*=)[^&]+", re.IGNORECASE)
"""A parameter of the query that is called as secrets are. None is asked for here, but clients try it."""


class PathFilter(logging.Filter):
    """Drops lines about paths that are equal to one of those given, whatever the query."""

    def __init__(self, paths: Iterable[str]) -> None:
        super().__init__()
        self._paths = frozenset(paths)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is logged."""
        args = _arguments(record)
        return args is None or str(args[_PATH]).partition("?")[0] not in self._paths


class QueryMask(logging.Filter):
    """Puts stars in the place of secrets that a client has written into the address."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Changes the record, and keeps it."""
        args = _arguments(record)
        if args is not None and "?" in str(args[_PATH]):
            record.args = (*args[:_PATH], _SECRET.sub(rf"\g<1>{MASK}", str(args[_PATH])), *args[_PATH + 1 :])
        return True


def set_up_access_log(left_out: Iterable[str]) -> None:
    """Lines about these paths are no longer logged; replaces an earlier choice."""
    logger = logging.getLogger(ACCESS_LOGGER)
    logger.filters[:] = [known for known in logger.filters if not isinstance(known, PathFilter | QueryMask)]
    logger.addFilter(PathFilter(left_out))
    logger.addFilter(QueryMask())


def _arguments(record: logging.LogRecord) -> tuple[Any, ...] | None:
    """Those of uvicorn's lines; None for lines of others."""
    args = record.args
    return args if isinstance(args, tuple) and len(args) > _PATH else None
