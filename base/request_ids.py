"""The id of the request that the current task serves, for its log lines; standard library only."""

import re
from contextvars import ContextVar

_VALID = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}")
_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def is_valid(given: str) -> bool:
    """Whether a client's id may stand in headers and log lines."""
    return _VALID.fullmatch(given) is not None


def current_request_id() -> str | None:
    """The id of the request that this task serves; None if it serves none."""
    return _current.get()


def set_request_id(request_id: str) -> None:
    """Sets the id for this task and the tasks that it creates from now on."""
    _current.set(request_id)
