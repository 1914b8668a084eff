"""Asks a server once whether it is ready, and understands what a starting one tells about itself."""

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
"""What a server's `status` says when it will never be ready."""
_NOT_YET: Final = (408, 425, 429)
"""Statuses below 500 that ask to come back later."""


@dataclass(frozen=True)
class Readiness:
    """What one look at a server brought."""

    state: State
    """`absent`: nothing answers; `failed`: it is no use to ask again."""
    reason: str = ""
    """Why it is not ready, in words."""
    phase: str | None = None
    progress: float | None = None
    """0 to 1."""
    eta_s: float | None = None
    status: str | None = None
    """The server's own word for its state: `starting`, `restarting`, `draining`, `dead`."""
    is_late: bool = False
    """No answer came in the time that there was for it."""


def ask_readiness(address: ServerAddress, path: str, *, timeout_s: float) -> Readiness:
    """Sends one GET; whatever happens to it is in the answer."""
    with closing(address.connect(timeout_s)) as connection:
        try:
            connection.request("GET", address.path + path, headers={"Connection": "close"})
            response = connection.getresponse()
            return _read_answer(response, address.path + path)
        except ssl.SSLCertVerificationError as err:
            return Readiness("failed", f"its certificate is not trusted ({err.verify_message})")
        except TimeoutError:
            return Readiness("absent", f"no answer within {timeout_s:.3g} s", is_late=True)
        except HTTPException as err:
            return Readiness("absent", f"it does not speak HTTP ({type(err).__name__})")
        except OSError as err:
            return Readiness("absent", (err.strerror or str(err)).lower())


def _read_answer(response: HTTPResponse, path: str) -> Readiness:
    if response.status < 300:
        return Readiness("ready")
    if response.status < 500 and response.status not in _NOT_YET:
        return Readiness("failed", f"{path} answers {response.status} {response.reason}, so it tells no readiness")
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
    """The number, None where it is none that makes sense."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return min(float(value), most) if is_number and value >= 0 else None
