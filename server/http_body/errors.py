"""The OpenAI error envelope."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

ServerStatus = Literal["starting", "restarting", "draining", "dead"]


class ErrorDetails(msgspec.Struct):
    """What a client's library reads, instead of the message."""

    error_code: str


class ErrorInfo(msgspec.Struct, kw_only=True):
    """An error; `param` is the invalid request field."""

    message: str
    type: str
    param: str | None = None
    code: int
    details: ErrorDetails | UnsetType = UNSET


class ErrorResponse(msgspec.Struct):
    """The body of every error, except the 503 of a server that is not ready."""

    error: ErrorInfo
    detail: str | UnsetType = UNSET
    """`Not Found`, as FastAPI answers, if the endpoint does not fit the model."""


class UnavailableInfo(msgspec.Struct, kw_only=True):
    """Why the server accepts no requests at the moment."""

    code: int = 503
    message: str
    type: str = "unavailable_error"


class UnavailableResponse(msgspec.Struct):
    """The body of a 503, for probes and for requests while the server is not ready."""

    error: UnavailableInfo
    status: ServerStatus
    phase: str | UnsetType = UNSET
    """The current phase of the start."""
    progress: float | UnsetType | None = UNSET
    """0 to 1; null if there is no record of an earlier start."""
    elapsed_s: float | UnsetType = UNSET
    eta_s: float | UnsetType | None = UNSET


def error_response(message: str, *, type: str, code: int, param: str | None = None) -> ErrorResponse:
    """Builds an error body."""
    return ErrorResponse(ErrorInfo(message=message, type=type, param=param, code=code))
