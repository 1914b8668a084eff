"""Who may use the router: API keys, and pages of other sites."""

from typing import Final

from aiohttp import hdrs, web

from server.apis.messages.response import is_anthropic
from server.security.api_keys import KEY_NEEDED, ApiKeys
from server.security.open_paths import find_open_paths
from startup.router.http.answers import FailedRequestError
from startup.router.http.cors import CorsPolicy

_KEY_HEADER: Final = "X-Api-Key"
_OTHER_SITE: Final = "cross-site"


class Access:
    """Checks requests before anything is done for them."""

    def __init__(self, api_keys: ApiKeys, cors: CorsPolicy, *, is_key_everywhere: bool) -> None:
        """With `is_key_everywhere`, only probes are open."""
        self._keys = api_keys
        self._cors = cors
        self._open_paths = find_open_paths(is_key_everywhere=is_key_everywhere)

    @property
    def needs_key(self) -> bool:
        """Whether there are keys."""
        return bool(len(self._keys))

    def check_key(self, request: web.Request, path: str) -> None:
        """Raises FailedRequestError without one of the keys, except for the open paths.

        Unlike one server, the router asks for it with OPTIONS, too: that could start a model.
        """
        if not self.needs_key or path in self._open_paths:
            return
        scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() == "bearer" and self._is_valid(key):
            return
        given = request.headers.get(_KEY_HEADER) if is_anthropic(path) else None
        if given is not None and self._is_valid(given):
            return
        raise FailedRequestError(401, KEY_NEEDED, headers={"WWW-Authenticate": "Bearer"})

    def headers_with_keys(self, path: str) -> frozenset[str]:
        """The headers, in lower case, that hold the router's keys: models' servers do not get them."""
        if not self.needs_key:
            return frozenset()
        return frozenset({"authorization", _KEY_HEADER.lower()} if is_anthropic(path) else {"authorization"})

    def refuse_other_sites(self, request: web.Request) -> None:
        """A page of another site may send some requests without asking before, and so start models."""
        is_other = request.headers.get("Sec-Fetch-Site") == _OTHER_SITE
        if is_other and not self._cors.allows(request.headers.get(hdrs.ORIGIN)):
            raise FailedRequestError(403, "Pages of other sites may not use the models: see --allowed-origins.")

    def _is_valid(self, key: str) -> bool:
        return self._keys.is_valid(key.encode("utf-8", "surrogateescape"))
