"""Cross-origin requests, by the same flags and rules as the embedded engine's server: those of Starlette."""

from collections.abc import MutableMapping
from typing import Final

from aiohttp import hdrs, web

from base.server_settings import NetworkConfig

_ASKED: Final = (hdrs.ORIGIN, hdrs.ACCESS_CONTROL_REQUEST_METHOD)


class CorsPolicy:
    """Nothing is allowed without --allowed-origins."""

    def __init__(self, config: NetworkConfig) -> None:
        self.is_on = bool(config.allowed_origins)
        if self.is_on:
            from starlette.middleware.cors import CORSMiddleware  # noqa: PLC0415 - 28 ms, and memory
            from starlette.responses import Response  # noqa: PLC0415

            self._rules = CORSMiddleware(
                Response(),
                allow_origins=config.allowed_origins,
                allow_methods=config.allowed_methods,
                allow_headers=config.allowed_headers,
                allow_credentials=config.allow_credentials,
            )

    def is_preflight(self, request: web.BaseRequest) -> bool:
        """Whether a browser asks if it may send a request."""
        is_asked = request.method == hdrs.METH_OPTIONS and all(name in request.headers for name in _ASKED)
        return self.is_on and is_asked

    def answer_preflight(self, request: web.BaseRequest) -> web.Response:
        """The answer to such a request."""
        from starlette.datastructures import Headers  # noqa: PLC0415

        answer = self._rules.preflight_response(Headers(dict(request.headers)))
        return web.Response(status=answer.status_code, body=answer.body, headers=answer.headers)

    def allows(self, origin: str | None) -> bool:
        """Whether pages of this origin may use the server."""
        return self.is_on and origin is not None and self._rules.is_allowed_origin(origin)

    def add_headers(self, origin: str | None, headers: MutableMapping[str, str]) -> None:
        """Adds what a browser needs to show the response to a page of this origin."""
        if origin is not None:
            headers.update(self._rules.simple_headers)
            if self._rules.preflight_explicit_allow_origin and self.allows(origin):
                headers["Access-Control-Allow-Origin"] = origin
        vary = headers.get("Vary")
        headers["Vary"] = f"{vary}, Origin" if vary else "Origin"
