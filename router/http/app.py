"""The router's HTTP server. It answers some requests itself, and passes all other requests to a model."""

import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from base.access_log import open_access_log
from base.http_requests import CLIENT_GONE, REQUEST_ID, decode, without_final_slash
from base.security.api_keys import ApiKeys
from base.server_settings import LoggingConfig, NetworkConfig
from router.http.access import Access
from router.http.answer_check import leads_up
from router.http.answers import FailedRequestError, error_answer, shown
from router.http.background import RESPONSES
from router.http.client_request import ClientRequest
from router.http.model_choice import SERVED, STREAM_PATHS, ModelChoice
from router.http.proxy import Proxy, RelayedCall
from router.http.request_body import BodyRoom, ForwardedBody, RequestedModel
from router.http.router_answers import RouterAnswers
from router.http.single_model_answers import SingleModelAnswers
from router.http.waiting import Patience
from router.metrics import UNKNOWN
from router.model_entry import ModelEntry
from router.model_pool import ModelPool
from server.http.transport.added_headers import AddedHeaders, read_request_id
from server.http.transport.connection import Serving
from server.http.transport.connection_table import raise_file_limit
from server.http.transport.http_request import ClientGoneError, Request
from server.http.transport.server import HttpServer
from server.terms.held_bytes import HeldBytes
from server.terms.http_body.response_body import Answer
from server.terms.limits import LimitsConfig

_STORED: Final = f"{RESPONSES}resp_"
"""The beginning of a stored response's path. Requests for other paths below `/v1/responses/` name a model."""
_UPSTREAM: Final = "/upstream/"
_ASSETS: Final = (".js", ".json", ".css", ".png", ".gif", ".jpg", ".jpeg", ".ico", ".svg", ".txt", ".woff2", ".map")
_ALLOWED: Final = ((b"allow", b"DELETE, GET, HEAD, PATCH, POST, PUT"),)
"""The methods that a model's server may support."""
_SERVER: Final = (b"server", b"vllm-cli")
_DELIVERY_S: Final = 1.0
"""Seconds in which clients can read the last responses when the router ends."""


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


class RouterHttp(NamedTuple):
    """The router's HTTP server, and what it wants to do before a model stops."""

    server: HttpServer
    keep_answers: Callable[[], Awaitable[None]]
    """Keeps answers of the model's server, which are given while it is stopped."""


def create_http(pool: ModelPool, options: AppOptions) -> RouterHttp:
    """Creates the application and its server. Clients get at most half of the file descriptors."""
    limits, held = options.limits, HeldBytes(options.limits.max_held_bytes)
    num_connections = raise_file_limit(2 * limits.max_connections) // 2  # models' servers and starts need the rest
    handler = _Handler(pool, options, held)
    server = HttpServer(
        Serving(
            handle=handler.handle,
            held=held,
            limits=replace(limits, max_connections=max(1, min(limits.max_connections, num_connections))),
            tls=options.tls_context,
            keep_alive_s=options.keep_alive_s,
            delivery_s=_DELIVERY_S,
            access_log=open_access_log(options.logging),
            takes_websockets=True,
        )
    )
    return RouterHttp(server, handler.keep_answers)


class _Handler:
    """Answers every request. Used on the event loop."""

    def __init__(self, pool: ModelPool, options: AppOptions, held: HeldBytes) -> None:
        network = options.network
        self._headers = AddedHeaders(network, adds_request_ids=options.adds_request_ids)
        self._pool = pool
        self._root_path = network.root_path.rstrip("/")
        self._access = Access(options.api_keys, self._headers.cors, is_key_everywhere=network.api_key_everywhere)
        self._dropped = frozenset() if options.model_has_keys else self._access.key_headers
        self._choice = ModelChoice(pool)
        self._proxy = Proxy(pool, options.patience)
        self._bodies = BodyRoom(options.limits, held)
        self._has_single_model = options.has_single_model
        create_own = SingleModelAnswers if options.has_single_model else RouterAnswers
        self._own = create_own(pool, self._proxy, self._choice, self._access, version=options.version)
        self._paths = SERVED | self._own.paths
        if not network.web_page:
            self._own.close_page()
        self.keep_answers = self._own.keep_answers

    async def handle(self, http: Request) -> None:
        request, status = ClientRequest(http, self._raw_path(http.raw_path)), CLIENT_GONE
        try:
            with suppress(ClientGoneError):
                http.cancel_if_gone()
                await self._respond(request)
                status = http.status or CLIENT_GONE
        finally:
            self._pool.metrics.note_request(request.record, status)

    async def _respond(self, request: ClientRequest) -> None:
        http = request.http
        if (request_id := read_request_id(http.headers)) is not None:
            REQUEST_ID.set(request_id)
        http.added_headers.append(_SERVER)
        preflight = self._headers.add_to(http)
        try:
            request.check_head()
            answer = preflight or await self._answer(request)
        except ClientGoneError:
            raise
        except Exception as err:  # noqa: BLE001
            answer = error_answer(err, request.path)
        if answer is None:
            return
        if http.status is None:
            await http.send(answer)
        else:
            http.abort()  # a response that has begun cannot become an error

    def _raw_path(self, raw_path: str) -> str:
        """The path as the client has spelled it, without the root path and final slashes."""
        root = self._root_path
        if root and (raw_path + "/").startswith(root + "/"):
            raw_path = raw_path[len(root) :] or "/"
        return without_final_slash(raw_path, self._paths)

    async def _answer(self, request: ClientRequest) -> Answer | None:
        """Returns the router's own answer, or None once a model's response is sent."""
        if request.method == "OPTIONS":  # the router answers itself, as our servers do
            raise FailedRequestError(405, "Method Not Allowed", headers=_ALLOWED)
        path, raw_path = request.path, request.raw_path
        own = self._own.find(request)
        if own is None:
            request.record.model = UNKNOWN
        self._access.check(request, own)
        if own is not None:
            return await own.handler(request)
        if path.startswith(_UPSTREAM):
            return await self._relay_upstream(request)
        if self._has_single_model:
            only = next(iter(self._pool.entries.values()))
            return await self._relay(request, raw_path, only)
        if path.startswith(_STORED) and request.query_value("model") is None:
            return await self._relay(request, raw_path, await self._model_of_response(raw_path))
        return await self._relay(request, raw_path, None)

    async def _relay_upstream(self, request: ClientRequest) -> Answer | None:
        """Passes a request below /upstream/ to a model's server. Icons, scripts and images start no model."""
        is_read, raw_path, http = request.is_read, request.raw_path, request.http
        entry, path = self._choice.by_path(raw_path.removeprefix(_UPSTREAM))
        if is_read and path == "/" and not raw_path.endswith("/"):  # the page's relative addresses need the slash
            target = f"{http.raw_path}/?{http.query}" if http.query else f"{http.raw_path}/"
            return Answer(status=301, headers=((b"location", target.encode()),))
        is_asset = is_read and path.lower().endswith(_ASSETS)
        if is_asset and not self._pool.is_ready(entry.name):
            raise FailedRequestError(409, f"`{entry.name}` does not run, and files of its pages do not start it.")
        return await self._relay(request, path, entry)

    async def _relay(self, request: ClientRequest, path: str, entry: ModelEntry | None) -> Answer | None:
        """Passes the request to the model `entry`, or if it is None, to the model that the request names."""
        if leads_up(path):
            raise FailedRequestError(400, "The path has a part `.` or `..`: write it without.")
        if request.http.is_websocket:
            if entry is None:
                entry = self._choice.by_query(request, path)
                self._choice.check_path(path, entry)
            await self._proxy.relay_websocket(request, entry, path, self._dropped)
            return None
        encoding = (request.header(b"content-encoding") or "identity").lower()
        if entry is None and encoding != "identity":
            raise FailedRequestError(415, f"Content-Encoding {shown(encoding)!r} is not supported: send it without.")
        body, media_type = ForwardedBody(self._bodies), request.header(b"content-type") or ""
        try:
            requested = await _read(request, body, media_type) if request.has_body else RequestedModel()
            if entry is None:
                entry = self._choice.by_body(request, path, requested)
                change = self._own.changes.get(path)
                if request.method == "POST" and change is not None:
                    request.record.model = None
                    return await change(entry.name, request)
                self._choice.check_path(path, entry)
                if entry.changes is not None and body.num_bytes:
                    await body.change(entry.changes, requested, media_type)
            call = RelayedCall(
                request=request,
                entry=entry,
                path=path,
                body=body,
                may_wait_visibly=requested.is_stream and path in STREAM_PATHS,
                is_background=requested.is_background and path == RESPONSES.rstrip("/"),
                dropped=self._dropped,
            )
            await self._proxy.relay(call)
            return None
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
        raise FailedRequestError(404, f"Response with id '{shown(decode(response_id))}' not found.")


async def _read(request: ClientRequest, body: ForwardedBody, media_type: str) -> RequestedModel:
    """Reads the body and finds the name of the model in it. Raises FailedRequestError."""
    announced = request.header(b"content-length") or "0"
    body.check_length(int(announced) if announced.isdigit() else 0)
    await body.read(request.http)
    return await body.find_model(media_type)
