"""Cross-origin requests that browsers may send, by the flags of `serve`. Standard library only."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from base.server_settings import NetworkConfig

_ASKED_METHOD: Final = "access-control-request-method"
_ASKED_HEADERS: Final = "access-control-request-headers"
_PRIVATE: Final = "access-control-request-private-network"
_ANY: Final = "*"
_METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY")
_ALWAYS_ALLOWED: Final = frozenset(("Accept", "Accept-Language", "Content-Language", "Content-Type"))
_VARY: Final = (
    "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, Access-Control-Request-Private-Network"
)


class Preflight(NamedTuple):
    """The answer to a browser that asks whether a page may send a request."""

    status: int
    text: str
    headers: dict[str, str]


class CorsPolicy:
    """Decides as Starlette does. Names of headers are in lower case."""

    def __init__(self, config: NetworkConfig) -> None:
        self._config = config
        self.is_on = bool(config.allowed_origins)
        self._methods = _METHODS if _ANY in config.allowed_methods else config.allowed_methods
        self._header_names = sorted(_ALWAYS_ALLOWED.union(config.allowed_headers))

    def is_preflight(self, method: str, headers: Mapping[str, str]) -> bool:
        return self.is_on and method == "OPTIONS" and "origin" in headers and _ASKED_METHOD in headers

    def answer_preflight(self, headers: Mapping[str, str]) -> Preflight:
        origin, asked = headers["origin"], headers.get(_ASKED_HEADERS)
        takes_all = _ANY in self._config.allowed_headers
        known = {name.lower() for name in self._header_names}
        names = [each.strip().lower() for each in (asked or "").split(",")]
        are_allowed = takes_all or asked is None or known.issuperset(names)
        allowed = asked if takes_all else ", ".join(self._header_names)
        checks = {
            "origin": self.allows(origin),
            "method": headers[_ASKED_METHOD] in self._methods,
            "headers": are_allowed,
            "private-network": _PRIVATE not in headers,
        }
        refused = [name for name, is_allowed in checks.items() if not is_allowed]
        answer = {
            "vary": _VARY,
            "access-control-allow-methods": ", ".join(self._methods),
            "access-control-max-age": "600",
            **({} if allowed is None else {"access-control-allow-headers": allowed}),
            **self.headers_for(origin),
        }
        text = f"Disallowed CORS {', '.join(refused)}" if refused else "OK"
        return Preflight(400 if refused else 200, text, answer)

    def allows(self, origin: str | None) -> bool:
        """Whether pages of this origin may use the server."""
        return origin is not None and (origin in self._config.allowed_origins or _ANY in self._config.allowed_origins)

    def headers_for(self, origin: str | None) -> dict[str, str]:
        """Headers without which a browser hides a response from a page of this origin, without Vary."""
        if origin is None:
            return {}
        has_credentials = self._config.allow_credentials
        headers: dict[str, str] = {"access-control-allow-credentials": "true"} if has_credentials else {}
        if self.allows(origin):
            is_for_all = _ANY in self._config.allowed_origins and not has_credentials
            headers["access-control-allow-origin"] = _ANY if is_for_all else origin
        return headers
