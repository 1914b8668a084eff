"""Checks API keys, and rejects requests from pages of other sites."""

import base64
import binascii
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from base.security.api_keys import ApiKeys, find_open_paths
from base.server_settings import NetworkConfig
from router.http.answers import FailedRequestError
from router.http.router_answers import RouterAnswer

_PORTS: Final = {"http": 80, "https": 443}
_ASKED: Final = (hdrs.ORIGIN, hdrs.ACCESS_CONTROL_REQUEST_METHOD)
"""The headers that identify a browser's CORS preflight request."""
_ANY: Final = "*"
_METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY")
_ALWAYS_ALLOWED: Final = frozenset(("Accept", "Accept-Language", "Content-Language", "Content-Type"))
_PRIVATE: Final = "Access-Control-Request-Private-Network"


class CorsPolicy:
    """Decides which cross-origin requests browsers may send, by the flags of `serve`, as Starlette does.

    Without --allowed-origins, no cross-origin request is allowed. Starlette is not a dependency of the base.
    """

    def __init__(self, config: NetworkConfig) -> None:
        self._config = config
        self.is_on = bool(config.allowed_origins)
        self._methods = _METHODS if _ANY in config.allowed_methods else config.allowed_methods
        self._header_names = sorted(_ALWAYS_ALLOWED.union(config.allowed_headers))

    def is_preflight(self, request: web.BaseRequest) -> bool:
        """Whether the request is a preflight, by which a browser asks whether a page may send a request."""
        is_asked = request.method == hdrs.METH_OPTIONS and all(name in request.headers for name in _ASKED)
        return self.is_on and is_asked

    def answer_preflight(self, request: web.BaseRequest) -> web.Response:
        origin, asked = request.headers[hdrs.ORIGIN], request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS)
        takes_all, known = _ANY in self._config.allowed_headers, {name.lower() for name in self._header_names}
        allowed = asked if takes_all else ", ".join(self._header_names)
        checks = {
            "origin": self.allows(origin),
            "method": request.headers[hdrs.ACCESS_CONTROL_REQUEST_METHOD] in self._methods,
            "headers": takes_all or asked is None or all(each.strip().lower() in known for each in asked.split(",")),
            "private-network": _PRIVATE not in request.headers,
        }
        refused = [name for name, is_allowed in checks.items() if not is_allowed]
        headers: dict[str, str] = {
            hdrs.VARY: ", ".join((*_ASKED, hdrs.ACCESS_CONTROL_REQUEST_HEADERS, _PRIVATE)),
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: ", ".join(self._methods),
            hdrs.ACCESS_CONTROL_MAX_AGE: "600",
            **({} if allowed is None else {hdrs.ACCESS_CONTROL_ALLOW_HEADERS: allowed}),
            **self._headers_for(origin),
        }
        text = f"Disallowed CORS {', '.join(refused)}" if refused else "OK"
        return web.Response(status=400 if refused else 200, text=text, headers=headers)

    def allows(self, origin: str | None) -> bool:
        """Whether pages of this origin may use the server."""
        return origin is not None and (origin in self._config.allowed_origins or _ANY in self._config.allowed_origins)

    def add_headers(self, origin: str | None, headers: MutableMapping[str, str]) -> None:
        """Adds the headers without which a browser hides the response from a page of this origin."""
        if origin is not None:
            headers.update(self._headers_for(origin))
        vary = headers.get(hdrs.VARY)
        headers[hdrs.VARY] = f"{vary}, Origin" if vary else "Origin"

    def _headers_for(self, origin: str) -> dict[str, str]:
        has_credentials = self._config.allow_credentials
        headers: dict[str, str] = {hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS: "true"} if has_credentials else {}
        if self.allows(origin):
            is_for_all = _ANY in self._config.allowed_origins and not has_credentials
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = _ANY if is_for_all else origin
        return headers


class Access:
    """Checks whether a request is allowed, before anything else is done with it."""

    def __init__(self, api_keys: ApiKeys, cors: CorsPolicy, *, is_key_everywhere: bool) -> None:
        """`is_key_everywhere`: whether all paths except probes need a key."""
        self._keys = api_keys
        self._cors = cors
        self._open_paths = find_open_paths(is_key_everywhere=is_key_everywhere)
        self.key_headers = frozenset({"authorization", "x-api-key"} if self.needs_key else ())
        """Lower-case names of headers that may contain the router's key. Models' servers do not get them."""

    @property
    def needs_key(self) -> bool:
        return bool(len(self._keys))

    def check(self, request: web.Request, path: str, own: RouterAnswer | None) -> None:
        """Raises FailedRequestError for a request that is not allowed. `own`: the router's own answer.

        If the router has keys, a request without a key can reach only some of the router's own answers. A
        request that reaches, starts or stops a model may not come from a page of another site, whatever its
        method.
        """
        if self.needs_key and (own is None or path not in self._open_paths):
            self._check_key(request)
        if own is None or not own.is_read:
            self._check_site(request)

    def _check_key(self, request: web.Request) -> None:
        def read_header(name: str) -> bytes:
            value = request.headers.get(name, "").encode("utf-8", "surrogateescape")
            return _bearer_of(value) if value[:6].lower() == b"basic " else value

        refusal = self._keys.refusal(read_header)
        if refusal is not None:
            raise FailedRequestError(401, refusal, headers={"WWW-Authenticate": "Bearer"})

    def _check_site(self, request: web.Request) -> None:
        """Rejects requests from pages of other sites. Browsers send some of these without a preflight.

        The header Sec-Fetch-Site says whether the page is of the same site. Browsers send it to https
        addresses and to this machine. Other servers get only Origin, except with some GETs. Programs send
        neither header.
        """
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get(hdrs.ORIGIN)
        if site == "same-origin" or self._cors.allows(origin):  # also behind a proxy that changes Host
            return
        is_other = origin is not None and not _is_of_host(origin, request.headers.get(hdrs.HOST, ""))
        if is_other or site not in (None, "none"):
            raise FailedRequestError(403, "Pages of other sites may not use the models: see --allowed-origins.")


def _bearer_of(basic: bytes) -> bytes:
    """Converts `Authorization: Basic …` to a bearer token with its password. Some tools send keys only so."""
    with suppress(binascii.Error):
        return b"Bearer " + base64.b64decode(basic[6:]).partition(b":")[2]
    return b""


def _is_of_host(origin: str, host: str) -> bool:
    """Whether the origin has this host. The schemes may differ, because a proxy may terminate TLS."""
    try:
        page, asked = urlsplit(origin), urlsplit(f"//{host}")
        default = _PORTS[page.scheme]
        ports = page.port or default, asked.port or default
        return bool(page.hostname) and page.hostname == asked.hostname and ports[0] == ports[1]
    except (KeyError, ValueError):
        return False
