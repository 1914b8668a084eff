"""Polls the readiness of a server once; a starting server also reports phase and progress."""

import json
import math
import ssl
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any, Final, Literal

from vllm_cli.client.server_address import ServerAddress

State = Literal["ready", "starting", "absent", "failed"]

_MAX_BODY_BYTES: Final = 1 << 16
_FAILED: Final = ("failed", "dead")
"""Values of `status` of a server that will never be ready."""
_NOT_YET: Final = (408, 425, 429)
"""HTTP statuses below 500 that mean a retry may succeed."""


@dataclass(frozen=True)
class Readiness:
    """The result of one poll."""

    state: State
    """`absent`: no response; `failed`: the server will never be ready."""
    reason: str = ""
    """Why the server is not ready, as text."""
    phase: str | None = None
    progress: float | None = None
    """0 to 1."""
    eta_s: float | None = None
    status: str | None = None
    """The server's own `status`: `starting`, `restarting`, `draining`, `dead`."""
    is_late: bool = False
    """The request timed out."""


def poll_readiness(address: ServerAddress, path: str, *, timeout_s: float) -> Readiness:
    """Sends one GET; failures are part of the result."""
    with closing(address.connect(timeout_s)) as connection:
        try:
            connection.request("GET", address.path + path, headers={"Connection": "close"})
            response = connection.getresponse()
            return _read_response(response, address.path + path)
        except ssl.SSLCertVerificationError as err:
            return Readiness("failed", f"its certificate is not trusted ({err.verify_message})")
        except TimeoutError:
            return Readiness("absent", f"no answer within {timeout_s:.3g} s", is_late=True)
        except HTTPException as err:
            return Readiness("absent", f"it does not speak HTTP ({type(err).__name__})")
        except OSError as err:
            return Readiness("absent", (err.strerror or str(err)).lower())


def _read_response(response: HTTPResponse, path: str) -> Readiness:
    if response.status < 300:
        return Readiness("ready")
    if response.status < 500 and response.status not in _NOT_YET:
        reason = f"{path} answers {response.status} {response.reason}, so it does not report readiness"
        return Readiness("failed", reason)
    try:
        body = json.loads(response.read(_MAX_BODY_BYTES))
    except (ValueError, RecursionError):
        body = None
    return _read_body(body if isinstance(body, dict) else {}, f"it answers {response.status}")


def _read_body(body: dict[str, Any], otherwise: str) -> Readiness:
    error = body.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    phase, status = body.get("phase"), body.get("status")
    return Readiness(
        "failed" if status in _FAILED else "starting",
        message if isinstance(message, str) else otherwise,
        phase if isinstance(phase, str) else None,
        _amount(body.get("progress"), most=1.0),
        _amount(body.get("eta_s")),
        status if isinstance(status, str) else None,
    )


def _amount(value: Any, most: float = math.inf) -> float | None:
    """The number; None if it is negative, infinite or not a number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return min(float(value), most) if is_number and value >= 0 else None
