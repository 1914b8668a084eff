"""Which request the code that runs right now works for, so that every line it logs can tell; standard library only."""

from contextvars import ContextVar

_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def current_request_id() -> str | None:
    """The id of the request that this task serves; None where it serves none."""
    return _current.get()


def note_request_id(request_id: str) -> None:
    """From now on this task, and those that it creates, serve this request."""
    _current.set(request_id)
