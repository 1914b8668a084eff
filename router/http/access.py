"""Checks API keys, and rejects requests from pages of other sites."""

import base64
import binascii
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from base.security.api_keys import ApiKeys, find_open_paths
from base.security.cors import CorsPolicy
from router.http.answers import FailedRequestError
from router.http.client_request import ClientRequest
from router.http.router_answers import RouterAnswer

_PORTS: Final = {"http": 80, "https": 443}


class Access:
    """Checks whether a request is allowed, before anything else is done with it."""

    def __init__(self, api_keys: ApiKeys, cors: CorsPolicy, *, is_key_everywhere: bool) -> None:
        """`is_key_everywhere`: whether all paths except probes need a key."""
        self._keys = api_keys
        self._cors = cors
        self._open_paths = find_open_paths(is_key_everywhere=is_key_everywhere)
        self.key_headers = frozenset({b"authorization", b"x-api-key"} if self.needs_key else ())
        """Lower-case names of headers that may contain the router's key. Models' servers do not get them."""

    @property
    def needs_key(self) -> bool:
        return bool(len(self._keys))

    def is_valid_in(self, request: ClientRequest) -> bool:
        """Whether a request at an open path has a valid key, or the router has no keys."""
        return not self.needs_key or self._refusal(request) is None

    def check(self, request: ClientRequest, own: RouterAnswer | None) -> None:
        """Raises FailedRequestError for a request that is not allowed. `own`: the router's own answer.

        If the router has keys, a request without a key can reach only some of the router's own answers. A
        request that reaches, starts or stops a model may not come from a page of another site, whatever its
        method.
        """
        if self.needs_key and (own is None or request.path not in self._open_paths):
            self._check_key(request)
        if own is None or not own.is_read:
            self._check_site(request)

    def _check_key(self, request: ClientRequest) -> None:
        if (refusal := self._refusal(request)) is not None:
            raise FailedRequestError(401, refusal, headers=((b"www-authenticate", b"Bearer"),))

    def _refusal(self, request: ClientRequest) -> str | None:
        def read_header(name: str) -> bytes:
            value = (request.header(name.encode()) or "").encode("latin-1")
            return _bearer_of(value) if value[:6].lower() == b"basic " else value

        return self._keys.refusal(read_header)

    def _check_site(self, request: ClientRequest) -> None:
        """Rejects requests from pages of other sites. Browsers send some of these without a preflight.

        The header Sec-Fetch-Site says whether the page is of the same site. Browsers send it to https
        addresses and to this machine. Other servers get only Origin, except with some GETs. Programs send
        neither header.
        """
        site, origin = request.header(b"sec-fetch-site"), request.header(b"origin")
        if site == "same-origin" or self._cors.allows(origin):  # also behind a proxy that changes Host
            return
        is_other = origin is not None and not _is_of_host(origin, request.header(b"host") or "")
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
