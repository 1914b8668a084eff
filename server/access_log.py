"""Keeps requests for some paths out of uvicorn's access log; standard library only."""

import logging
from collections.abc import Iterable
from typing import Final

ACCESS_LOGGER: Final = "uvicorn.access"
_PATH: Final = 2
"""Where uvicorn puts the path among a record's arguments: client, method, path, version, status."""


class PathFilter(logging.Filter):
    """Drops lines about paths that are equal to one of those given, whatever the query."""

    def __init__(self, paths: Iterable[str]) -> None:
        super().__init__()
        self._paths = frozenset(paths)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is logged."""
        args = record.args
        if not isinstance(args, tuple) or len(args) <= _PATH:
            return True
        return str(args[_PATH]).partition("?")[0] not in self._paths


def leave_out(paths: Iterable[str]) -> None:
    """Lines about these paths are no longer logged; replaces an earlier choice."""
    logger = logging.getLogger(ACCESS_LOGGER)
    logger.filters[:] = [known for known in logger.filters if not isinstance(known, PathFilter)]
    logger.addFilter(PathFilter(paths))
