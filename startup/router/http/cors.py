"""Cross-origin requests, by the same four flags and with the same answers as the embedded engine's server."""

from collections.abc import Mapping, MutableMapping
from typing import Final, NamedTuple

from base.server_settings import NetworkConfig

_ALL_METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY")
_SAFE_HEADERS: Final = frozenset({"Accept", "Accept-Language", "Content-Language", "Content-Type"})
_PREFLIGHT_VARY: Final = (
    "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, Access-Control-Request-Private-Network"
)
_ANY: Final = "*"


class PreflightAnswer(NamedTuple):
    """The answer to the question of a browser whether it may send a request."""

    status: int
    text: str
    headers: Mapping[str, str]


class CorsPolicy:
    """What Starlette's CORSMiddleware does with the same settings."""

    def __init__(self, config: NetworkConfig) -> None:
        self.is_on = bool(config.allowed_origins)
        self._origins = frozenset(config.allowed_origins)
        self._methods = _ALL_METHODS if _ANY in config.allowed_methods else config.allowed_methods
        self._headers = sorted(_SAFE_HEADERS | set(config.allowed_headers))
        self._allows_credentials = config.allow_credentials
        self._allows_any_origin = _ANY in config.allowed_origins
        self._allows_any_header = _ANY in config.allowed_headers

    def is_preflight(self, method: str, headers: Mapping[str, str]) -> bool:
        """Whether a browser asks if it may send a request."""
        return self.is_on and method == "OPTIONS" and "Origin" in headers and "Access-Control-Request-Method" in headers

    def answer_preflight(self, headers: Mapping[str, str]) -> PreflightAnswer:
        """The answer to such a request."""
        answer = {
            "Vary": _PREFLIGHT_VARY,
            "Access-Control-Allow-Methods": ", ".join(self._methods),
            "Access-Control-Max-Age": "600",
        }
        if self._allows_credentials:
            answer["Access-Control-Allow-Credentials"] = "true"
        origin = headers["Origin"]
        if self._allows_any_origin and not self._allows_credentials:
            answer["Access-Control-Allow-Origin"] = _ANY
        elif self.allows(origin):
            answer["Access-Control-Allow-Origin"] = origin
        requested = headers.get("Access-Control-Request-Headers")
        if self._allows_any_header and requested is not None:
            answer["Access-Control-Allow-Headers"] = requested
        elif not self._allows_any_header:
            answer["Access-Control-Allow-Headers"] = ", ".join(self._headers)
        faults = [name for name, is_fault in self._faults(headers, requested) if is_fault]
        if faults:
            return PreflightAnswer(400, "Disallowed CORS " + ", ".join(faults), answer)
        return PreflightAnswer(200, "OK", answer)

    def allows(self, origin: str | None) -> bool:
        """Whether pages of this origin may use the server."""
        return origin is not None and (self._allows_any_origin or origin in self._origins)

    def add_headers(self, origin: str | None, headers: MutableMapping[str, str]) -> None:
        """Adds what a browser needs to show the response to a page of this origin."""
        if origin is not None:
            if self._allows_any_origin:
                headers["Access-Control-Allow-Origin"] = _ANY
            if self._allows_credentials:
                headers["Access-Control-Allow-Credentials"] = "true"
            is_named = self._allows_credentials if self._allows_any_origin else origin in self._origins
            if is_named:
                headers["Access-Control-Allow-Origin"] = origin
        vary = headers.get("Vary")
        headers["Vary"] = f"{vary}, Origin" if vary else "Origin"

    def _faults(self, headers: Mapping[str, str], requested: str | None) -> list[tuple[str, bool]]:
        allowed = {name.lower() for name in self._headers}
        unknown = {name.strip().lower() for name in (requested or "").split(",") if name.strip()} - allowed
        return [
            ("origin", not self.allows(headers["Origin"])),
            ("method", headers["Access-Control-Request-Method"] not in self._methods),
            ("headers", bool(unknown) and not self._allows_any_header),
            ("private-network", "Access-Control-Request-Private-Network" in headers),
        ]
