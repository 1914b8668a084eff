"""Headers that each response has by the server's flags: the request's id, and those for browsers (CORS)."""

from uuid import uuid4

from base.http_requests import is_valid_id
from base.security.cors import CorsPolicy
from base.server_settings import NetworkConfig
from server.http.transport.http_request import RawHeaders, Request, find_header
from server.terms.http_body.response_body import Answer, Headers


class AddedHeaders:
    """Adds headers to the responses of one server."""

    def __init__(self, network: NetworkConfig, *, adds_request_ids: bool) -> None:
        self.cors = CorsPolicy(network)
        self._adds_request_ids = adds_request_ids

    def add_to(self, request: Request) -> Answer | None:
        """Adds headers to the request's response. Returns the answer if the request is a preflight."""
        if self._adds_request_ids:
            _set_request_id(request)
        if not self.cors.is_on:
            return None
        sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
        if self.cors.is_preflight(request.method, sent):
            status, text, headers = self.cors.answer_preflight(sent)
            return Answer(text.encode(), status, _encode({"content-type": "text/plain; charset=utf-8", **headers}))
        request.added_headers += _encode({**self.cors.headers_for(sent.get("origin")), "vary": "Origin"})
        return None


def read_request_id(headers: RawHeaders) -> str | None:
    """Returns the client's X-Request-Id, or None if it is missing or unfit for logs, headers and bodies."""
    given = find_header(headers, b"x-request-id")
    return given if given is not None and is_valid_id(given) else None


def _set_request_id(request: Request) -> None:
    """Adds the request's X-Request-Id to the response. A request without a valid id gets a new one."""
    request_id = read_request_id(request.headers)
    if request_id is None:
        request_id = uuid4().hex
        request.headers.insert(0, (b"x-request-id", request_id.encode()))
    request.added_headers.append((b"x-request-id", request_id.encode("latin-1")))


def _encode(headers: dict[str, str]) -> Headers:
    return tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items())
