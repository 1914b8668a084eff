"""One HEAD request to the hub, in a thread with a deadline: its timeout does not bound DNS lookups.

All its modules are imported on the calling thread, so that no module is imported on two threads at once.
"""

import encodings.idna  # noqa: F401 - else the thread imports the codec of host names
import socket
import ssl
import threading
from http.client import HTTPException
from typing import Final, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

_DEADLINE_MARGIN_S: Final = 0.2
_HANDLERS: Final = (ProxyHandler, HTTPHandler, HTTPSHandler, HTTPDefaultErrorHandler, HTTPErrorProcessor)
"""Without redirects: one means that the file is available, and it could send the token elsewhere."""


class HubAnswer(NamedTuple):
    """The hub's answer: a status, or the reason why there is none."""

    status: int | None = None
    error_code: str = ""
    """The hub's error code, such as `GatedRepo`."""
    reason: str = ""
    """Why there is no status."""
    is_timeout: bool = False


class HubRequest:
    """A request that runs in a thread from its creation on; `wait` returns the answer."""

    def __init__(self, url: str, *, token: str | None, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._answer = HubAnswer(reason=f"no answer within {timeout_s:g} s", is_timeout=True)
        self._thread = threading.Thread(target=self._run, args=(url, token), name="preflight-hub", daemon=True)
        self._thread.start()

    def wait(self) -> HubAnswer:
        """The answer; a request that hangs is abandoned."""
        self._thread.join(self._timeout_s + _DEADLINE_MARGIN_S)
        return self._answer

    def _run(self, url: str, token: str | None) -> None:
        self._answer = _head(url, token, self._timeout_s)


def _head(url: str, token: str | None, timeout_s: float) -> HubAnswer:
    try:
        request = Request(url, method="HEAD", headers={"Authorization": f"Bearer {token}"} if token else {})
        opener = OpenerDirector()
        for handler in _HANDLERS:
            opener.add_handler(handler())
        with opener.open(request, timeout=timeout_s) as response:
            return HubAnswer(response.status)
    except HTTPError as err:
        return HubAnswer(err.code, err.headers.get("X-Error-Code", ""))
    except TimeoutError:
        return HubAnswer(reason=f"no answer within {timeout_s:g} s", is_timeout=True)
    except URLError as err:
        return HubAnswer(reason=_reason(err.reason), is_timeout=isinstance(err.reason, TimeoutError))
    except (OSError, HTTPException, ValueError) as err:
        return HubAnswer(reason=_reason(err))


def _reason(err: BaseException | str) -> str:
    if isinstance(err, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {err.verify_message}"
    if isinstance(err, socket.gaierror):
        return "its host name is not known"
    if isinstance(err, OSError) and err.strerror:
        return err.strerror.lower()
    return " ".join(str(err).split()) or type(err).__name__
