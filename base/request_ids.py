"""The id of the request that the current task serves, for its log lines. Standard library only."""

import re
from contextvars import ContextVar

_VALID = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}")
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that this task serves. None if it serves none. New tasks inherit the id."""


def is_valid(given: str) -> bool:
    """Whether an id from a client may be copied into headers and log lines."""
    return _VALID.fullmatch(given) is not None
