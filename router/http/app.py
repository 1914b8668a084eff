"""The router's HTTP server. It answers some requests itself, and passes all other requests to a model."""

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote
from uuid import uuid4

from aiohttp import hdrs, web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.http import SERVER_SOFTWARE, HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError

from base.access_log import ACCESS_LINE, open_access_log
from base.http_buckets import CLIENT_GONE
from base.request_ids import REQUEST_ID, is_valid
from base.request_paths import without_final_slash
from base.security.api_keys import PROBE_PATHS, ApiKeys
from base.security.cors import CorsPolicy
from base.server_settings import LoggingConfig, NetworkConfig
from router.http.access import Access
from router.http.answers import SERVER, FailedRequestError, error_answer, shown
from router.http.background import RESPONSES
from router.http.connection import ClientRequest, ClientServer
from router.http.model_choice import SERVED, STREAM_PATHS, ModelChoice
from router.http.proxy import Proxy, RelayedCall
from router.http.request_body import BodyRoom, ForwardedBody, RequestedModel
from router.http.router_answers import RouterAnswers
from router.http.single_model_answers import SingleModelAnswers
from router.http.waiting import Patience
from router.metrics import UNKNOWN
from router.model_entry import ModelEntry
from router.model_pool import ModelPool, ModelRefused
from server.terms.limits import LimitsConfig, flag_of

logger = logging.getLogger(__name__)

_STORED: Final = f"{RESPONSES}resp_"
"""The beginning of a stored response's path. Requests for other paths below `/v1/responses/` name a model."""
_UPSTREAM: Final = "/upstream/"
_ASSETS: Final = (".js", ".json", ".css", ".png", ".gif", ".jpg", ".jpeg", ".ico", ".svg", ".txt", ".woff2", ".map")
_ALLOWED: Final = "DELETE, GET, HEAD, PATCH, POST, PUT"
"""The value of the header Allow: the methods that a model's server may support."""
_REQUEST_ID: Final = "X-Request-Id"


@dataclass(frozen=True, kw_only=True)
class AppOptions:
    """The settings of the application."""

    network: NetworkConfig
    limits: LimitsConfig
    logging: LoggingConfig
    api_keys: ApiKeys
    tls_context: Callable[[], ssl.SSLContext] | None
    version: str
    keep_alive_s: float
    """Seconds after which a connection without a request is closed."""
    adds_request_ids: bool = False
    """Whether each response has the header X-Request-Id, also if the router answers itself."""
    has_single_model: bool = False
    """Whether the router has one model, which gets all requests, whatever model they name."""
    model_has_keys: bool = False
    """Whether the model's server checks API keys itself, so that the router passes them on."""
    patience: Patience = Patience()


def create_runner(pool: ModelPool, options: AppOptions) -> web.ServerRunner:
    """Creates the application and the runner that serves it."""
    quiet = logging.getLogger(f"{__name__}.connections")
    quiet.setLevel(logging.CRITICAL)  # aiohttp logs an error for each input that is not HTTP
    handler = _Handler(pool, options)
    server = ClientServer(
        handler.handle,
        handler.complete_headers,
        options.limits,
        options.tls_context,
        keepalive_timeout=options.keep_alive_s,
        access_log_class=AccessLog,
        access_log=open_access_log(options.logging),
        logger=quiet,
    )
    return web.ServerRunner(server, shutdown_timeout=1.0)


class AccessLog(AbstractAccessLogger):
    """Logs requests in the form that our log formats and filters need."""

    @property
    def enabled(self) -> bool:
        return self.logger.isEnabledFor(logging.INFO)

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Logs one line for a request and its response."""
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        client = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else ""
        version = f"{request.version.major}.{request.version.minor}"
        arguments = (client, request.method, request.raw_path, version, response.status)
        self.logger.info(ACCESS_LINE, *arguments)


class _Handler:
    """Answers every request. Used on the event loop."""

    def __init__(self, pool: ModelPool, options: AppOptions) -> None:
        network = options.network
        self.cors = CorsPolicy(network)
        self._pool = pool
        self._root_path = network.root_path.rstrip("/")
        self._access = Access(options.api_keys, self.cors, is_key_everywhere=network.api_key_everywhere)
        self._dropped = frozenset() if options.model_has_keys else self._access.key_headers
        self._choice = ModelChoice(pool)
        self._proxy = Proxy(pool, options.patience)
        self._bodies = BodyRoom(options.limits)
        self._has_single_model = options.has_single_model
        self._adds_request_ids = options.adds_request_ids
        create_own = SingleModelAnswers if options.has_single_model else RouterAnswers
        needs_key = self._access.needs_key
        self._own = create_own(pool, self._proxy, self._choice, version=options.version, needs_key=needs_key)
        self._paths = SERVED | self._own.paths
        if not network.web_page:
            self._own.close_page()

    async def handle(self, request: ClientRequest) -> web.StreamResponse:
        status = CLIENT_GONE
        try:
            response = await self._respond(request)
            status = response.status
            return response
        finally:
            self._pool.metrics.note_request(request.record, status)

    async def _respond(self, request: ClientRequest) -> web.StreamResponse:
        raw_path = self._raw_path(request)
        path = unquote(raw_path) if "%" in raw_path else raw_path
        request_id = request.headers.get(_REQUEST_ID)
        if request_id is not None and is_valid(request_id):
            REQUEST_ID.set(request_id)
        try:
            request.check_head()
            if not request.protocol.has_room and path not in PROBE_PATHS:
                request.record.model = UNKNOWN
                text = f"The server has reached its limit of connections ({flag_of('max_connections')})."
                raise FailedRequestError(503, text, headers={"Retry-After": "1"}, closes=True)
            return await self._answer(request, path, raw_path)
        except FailedRequestError as err:
            failed = err
        except ModelRefused as refused:
            failed = FailedRequestError.from_refused(refused)
        except (web.RequestPayloadError, HttpProcessingError) as err:
            failed = FailedRequestError(400, f"The request's body cannot be read: {err}")
        except ConnectionError:  # to the client
            failed = FailedRequestError(CLIENT_GONE, "")
        except Exception:
            logger.exception("a request failed unexpectedly")
            failed = FailedRequestError(500, "Internal server error")
        if request.transport is not None and (failed.status == CLIENT_GONE or request.writer.output_size):
            request.transport.abort()  # a response that has begun cannot become an error
        return error_answer(failed, path)

    def _raw_path(self, request: ClientRequest) -> str:
        """The path as the client has spelled it, without the root path and final slashes."""
        raw_path, root = request.rel_url.raw_path, self._root_path
        if root and (raw_path + "/").startswith(root + "/"):
            raw_path = raw_path[len(root) :] or "/"
        return without_final_slash(raw_path, self._paths)

    def complete_headers(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Adds headers. Called before the head of a response is sent."""
        if response.headers[hdrs.SERVER] == SERVER_SOFTWARE:  # set by neither the router nor a model's server
            response.headers[hdrs.SERVER] = SERVER
        if self._adds_request_ids and _REQUEST_ID not in response.headers:
            given = request.headers.get(_REQUEST_ID, "")
            response.headers[_REQUEST_ID] = given if is_valid(given) else uuid4().hex
        if self.cors.is_on and not self.cors.is_preflight(request.method, request.headers):
            response.headers.update(self.cors.headers_for(request.headers.get(hdrs.ORIGIN)))
            vary = response.headers.get(hdrs.VARY)
            response.headers[hdrs.VARY] = f"{vary}, Origin" if vary else "Origin"

    async def _answer(self, request: ClientRequest, path: str, raw_path: str) -> web.StreamResponse:
        if request.method == hdrs.METH_OPTIONS:  # the router answers itself, as our servers do
            if not self.cors.is_preflight(request.method, request.headers):
                raise FailedRequestError(405, "Method Not Allowed", headers={"Allow": _ALLOWED})
            status, text, headers = self.cors.answer_preflight(request.headers)
            return web.Response(status=status, text=text, headers=headers)
        own = self._own.find(request.method, path)
        if own is None:
            request.record.model = UNKNOWN
        self._access.check(request, path, own)
        if own is not None:
            return await own.handler(request)
        if path.startswith(_UPSTREAM):
            return await self._relay_upstream(request, raw_path)
        if self._has_single_model:
            return await self._relay(request, raw_path, next(iter(self._pool.entries.values())))
        if path.startswith(_STORED) and "model" not in request.query:
            return await self._relay(request, raw_path, await self._model_of_response(raw_path))
        return await self._relay(request, raw_path, None)

    async def _relay_upstream(self, request: ClientRequest, raw_path: str) -> web.StreamResponse:
        """Passes a request below /upstream/ to a model's server. Icons, scripts and images start no model."""
        is_read = request.method in (hdrs.METH_GET, hdrs.METH_HEAD)
        entry, path = self._choice.by_path(raw_path.removeprefix(_UPSTREAM))
        if is_read and path == "/" and not raw_path.endswith("/"):  # the page's relative addresses need the slash
            query = f"?{request.rel_url.raw_query_string}" if request.rel_url.raw_query_string else ""
            return web.Response(status=301, headers={hdrs.LOCATION: f"{request.rel_url.raw_path}/{query}"})
        if is_read and path.lower().endswith(_ASSETS) and not self._pool.is_ready(entry.name):
            raise FailedRequestError(409, f"`{entry.name}` does not run, and files of its pages do not start it.")
        return await self._relay(request, path, entry)

    async def _relay(self, request: ClientRequest, path: str, entry: ModelEntry | None) -> web.StreamResponse:
        """Passes the request to the model `entry`, or if it is None, to the model that the request names."""
        if request.method == "GET" and request.headers.get(hdrs.UPGRADE, "").lower() == "websocket":
            if entry is None:
                entry = self._choice.by_query(request, path)
                self._choice.check_path(path, entry)
            return await self._proxy.relay_websocket(request, entry, path, self._dropped)
        encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower()
        if entry is None and encoding != "identity":
            raise FailedRequestError(415, f"Content-Encoding {shown(encoding)!r} is not supported: send it without.")
        body = ForwardedBody(self._bodies)
        try:
            requested = await _read(request, body) if request.body_exists else RequestedModel()
            if entry is None:
                entry = self._choice.by_body(request, path, requested)
                if request.method == hdrs.METH_POST and (change := self._own.changes.get(path)) is not None:
                    request.record.model = None
                    return await change(entry.name, request)
                self._choice.check_path(path, entry)
                if entry.changes is not None and body.num_bytes:
                    await body.change(entry.changes, requested, request.headers.get(hdrs.CONTENT_TYPE, ""))
            call = RelayedCall(
                request=request,
                entry=entry,
                path=path,
                body=body,
                may_wait_visibly=requested.is_stream and path in STREAM_PATHS,
                is_background=requested.is_background and path == RESPONSES.rstrip("/"),
                dropped=self._dropped,
            )
            return await self._proxy.relay(call)
        finally:
            body.close()

    async def _model_of_response(self, path: str) -> ModelEntry:
        """The model that has stored the response. It must run, because only its process has the response."""
        if (made := self._proxy.background.find(path)) is not None:
            return made.entry
        response_id = path.removeprefix(RESPONSES).partition("/")[0]
        for name, entry in self._pool.entries.items():
            child = self._pool.child_of(name)
            if child is not None and await self._proxy.ask(child, RESPONSES + response_id) is not None:
                return entry
        raise FailedRequestError(404, f"Response with id '{shown(unquote(response_id))}' not found.")


async def _read(request: web.Request, body: ForwardedBody) -> RequestedModel:
    """Reads the body and finds the name of the model in it. Raises FailedRequestError."""
    body.check_length(request.content_length or 0)
    if request.version >= HttpVersion11 and request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # aiohttp takes any earlier output for the response's beginning
    await body.read(request.content)
    return await body.find_model(request.headers.get(hdrs.CONTENT_TYPE, ""))
