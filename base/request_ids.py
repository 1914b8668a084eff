"""The id of the request that the current task serves, for its log lines. Standard library only."""

import re
from contextvars import ContextVar

_VALID = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}")
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that this task serves. Tasks that it creates inherit the id.

None if the task serves no request.
"""


def is_valid(given: str) -> bool:
    """Whether a client's id may be copied into headers and log lines."""
    return _VALID.fullmatch(given) is not None
