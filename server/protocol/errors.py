"""The OpenAI error envelope."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

ServerStatus = Literal["starting", "restarting", "draining", "dead"]


class ErrorInfo(msgspec.Struct, kw_only=True):
    """What went wrong; `param` is the request field at fault."""

    message: str
    type: str
    param: str | None = None
    code: int


class ErrorResponse(msgspec.Struct):
    """The body of every error but 503."""

    error: ErrorInfo


class UnavailableInfo(msgspec.Struct, kw_only=True):
    """Why no request is taken at the moment."""

    code: int = 503
    message: str
    type: str = "unavailable_error"


class UnavailableResponse(msgspec.Struct):
    """The body of a 503: of probes and of requests that came too early or too late."""

    error: UnavailableInfo
    status: ServerStatus
    phase: str | UnsetType = UNSET
    """While the server starts: what it is at."""
    progress: float | UnsetType | None = UNSET
    """0 to 1; null where no earlier start tells."""
    elapsed_s: float | UnsetType = UNSET
    eta_s: float | UnsetType | None = UNSET


def error_response(message: str, *, type: str, code: int, param: str | None = None) -> ErrorResponse:
    """An error body from its parts."""
    return ErrorResponse(ErrorInfo(message=message, type=type, param=param, code=code))
