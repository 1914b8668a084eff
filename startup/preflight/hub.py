"""Checks that the hub allows a download: hub reachable, model existing and not gated, token valid."""

import encodings.idna  # noqa: F401 - else the thread imports the codec of host names
import socket
import ssl
import threading
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Final, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from envs.registry import env
from startup.download.endpoints import hub_endpoints
from startup.download.hub_answers import Asked, is_worth_a_retry, refusal
from startup.model.location import ModelPlace
from startup.preflight.report import Finding, error, info, warning

_MODEL_FILE: Final = "config.json"
_TOKENIZER_FILE: Final = "tokenizer_config.json"
_DEADLINE_MARGIN_S: Final = 0.2
_HANDLERS: Final = (ProxyHandler, HTTPHandler, HTTPSHandler, HTTPDefaultErrorHandler, HTTPErrorProcessor)
"""Without redirects: one means that the file is available, and it could send the token elsewhere."""


class HubCheck:
    """Sends a request for one model or tokenizer when created; `findings` evaluates the answer."""

    def __init__(self, place: ModelPlace, *, token: str | None, timeout_s: float) -> None:
        self._place = place
        self._endpoint, *self._mirrors = hub_endpoints()
        self._token = token or _stored_token()
        name = _TOKENIZER_FILE if place.is_tokenizer else _MODEL_FILE
        revision = quote(place.revision or "main", safe="")
        url = f"{self._page}/resolve/{revision}/{name}"
        self._request = _HubRequest(url, token=self._token, timeout_s=timeout_s)

    def findings(self) -> Iterator[Finding]:
        """The answer's findings; waits for the answer or the timeout."""
        answer = self._request.wait()
        if answer.status is None:
            yield self._unreachable(answer)
        elif problem := self._refusal(answer.status, answer.error_code):
            is_final = not is_worth_a_retry(answer.status) and not self._mirrors
            yield error("hub", problem) if is_final else warning("hub", f"{problem}; the download is tried anyway")
        else:
            yield info("hub", f"{self._place.name} is to be downloaded from {self._endpoint}")

    @property
    def _page(self) -> str:
        return f"{self._endpoint}/{quote(self._place.name)}"

    def _unreachable(self, answer: "_HubAnswer") -> Finding:
        what = f"{self._place.name} is not cached, and the hub at {self._endpoint} cannot be reached: {answer.reason}"
        if self._place.is_default:
            return warning("hub", f"{what}; the model is taken from the Python package index instead")
        if answer.is_timeout or self._mirrors:
            return warning("hub", f"{what}; the download is tried anyway, MODEL may be a local folder instead")
        return error("hub", f"{what}; check the network and HF_ENDPOINT, or give a local folder as MODEL")

    def _refusal(self, status: int, code: str) -> str | None:
        name = self._place.name
        if status < 400 or (status == 404 and code == "EntryNotFound" and self._place.is_tokenizer):
            return None
        if code == "EntryNotFound":
            return f"{name} has no {_MODEL_FILE}, so it is not a model that transformers can load"
        return refusal(status, code, Asked(name, self._place.revision, self._endpoint, has_token=bool(self._token)))


def _stored_token() -> str | None:
    """The token that `hf auth login` has stored."""
    try:
        return (Path(env.HF_HOME.get()) / "token").read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


class _HubAnswer(NamedTuple):
    """The hub's answer: a status, or the reason why there is none."""

    status: int | None = None
    error_code: str = ""
    """The hub's error code, such as `GatedRepo`."""
    reason: str = ""
    """Why there is no status."""
    is_timeout: bool = False


class _HubRequest:
    """One HEAD request in a thread with a deadline: its timeout does not bound DNS lookups.

    All its modules are imported on the calling thread, so that no module is imported on two threads at once.
    """

    def __init__(self, url: str, *, token: str | None, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._answer = _HubAnswer(reason=f"no answer within {timeout_s:g} s", is_timeout=True)
        self._thread = threading.Thread(target=self._run, args=(url, token), name="preflight-hub", daemon=True)
        self._thread.start()

    def wait(self) -> _HubAnswer:
        """The answer; a request that hangs is abandoned."""
        self._thread.join(self._timeout_s + _DEADLINE_MARGIN_S)
        return self._answer

    def _run(self, url: str, token: str | None) -> None:
        self._answer = _head(url, token, self._timeout_s)


def _head(url: str, token: str | None, timeout_s: float) -> _HubAnswer:
    try:
        request = Request(url, method="HEAD", headers={"Authorization": f"Bearer {token}"} if token else {})
        opener = OpenerDirector()
        for handler in _HANDLERS:
            opener.add_handler(handler())
        with opener.open(request, timeout=timeout_s) as response:
            return _HubAnswer(response.status)
    except HTTPError as err:
        return _HubAnswer(err.code, err.headers.get("X-Error-Code", ""))
    except TimeoutError:
        return _HubAnswer(reason=f"no answer within {timeout_s:g} s", is_timeout=True)
    except URLError as err:
        return _HubAnswer(reason=_reason(err.reason), is_timeout=isinstance(err.reason, TimeoutError))
    except (OSError, HTTPException, ValueError) as err:
        return _HubAnswer(reason=_reason(err))


def _reason(err: BaseException | str) -> str:
    if isinstance(err, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {err.verify_message}"
    if isinstance(err, socket.gaierror):
        return "its host name is not known"
    if isinstance(err, OSError) and err.strerror:
        return err.strerror.lower()
    return " ".join(str(err).split()) or type(err).__name__
