"""The router's aiohttp application: which requests it answers itself, and to which model all others go."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from aiohttp import hdrs, web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.http_exceptions import HttpProcessingError

from server.access_log import ACCESS_LOGGER, set_up_access_log
from server.apis.messages.response import is_anthropic
from server.request_ids import set_request_id
from server.security.api_keys import ApiKeys
from server.security.open_paths import find_open_paths
from server.server_config import NetworkConfig
from server.status_page.page import DATA_PATH, read_page
from startup.router.http.answers import SERVER, FailedRequestError, error_answer, json_answer, shown
from startup.router.http.cors import CorsPolicy
from startup.router.http.model_list import ModelList
from startup.router.http.model_name import ModelScanner, create_scanner
from startup.router.http.proxy import Call, Proxy
from startup.router.http.request_body import MOST_SEARCHED_BYTES, BodyTooLongError, HeldBytes, RequestBody
from startup.router.model_entry import ModelEntry
from startup.router.model_pool import ModelPool, ModelRefused

logger = logging.getLogger(__name__)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_STREAM_PATHS: Final = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
    }
)
"""Endpoints whose `stream` asks for events."""
_MODELS: Final = "/v1/models/"
_RESPONSES: Final = "/v1/responses/"
_UNLOAD: Final = "/api/models/unload/"
_UPSTREAM: Final = "/upstream/"
_MODEL_OF_ONE: Final = ("/v1/", "/tokenizer_info")
"""GET requests that go to the only model without naming it; others, such as a browser's, would start it."""
_LONGEST_ID: Final = 128
"""Of a request's id that log lines show."""
_CLIENT_GONE: Final = 499
_MOST_HEADER_BYTES: Final = 64 << 10
_MOST_HEADERS: Final = 256
_IDLE_S: Final = 75.0
_READ_BYTES: Final = 64 << 10
_MOST_OFFERED: Final = 20
"""Names of models in a message."""
_MOST_SEGMENTS: Final = 8
"""Of a path that may be the name of a model."""


@dataclass(frozen=True, kw_only=True)
class AppOptions:
    """The settings of the application."""

    network: NetworkConfig
    api_keys: ApiKeys
    version: str
    is_access_logged: bool
    unlogged_paths: tuple[str, ...] = ()
    """Paths whose requests are left out of the access log."""


def create_app(pool: ModelPool, options: AppOptions) -> web.Application:
    """The application; needs the arguments that `create_runner` passes to aiohttp's server."""
    app = web.Application()
    front = _Front(pool, options)
    # one route: aiohttp's table is slower than a dictionary, and decodes paths before it matches
    app.router.add_route("*", "/{path:.*}", front.handle, expect_handler=_expect_later)
    if front.cors.is_on:
        app.on_response_prepare.append(front.add_cors_headers)
    return app


def create_runner(app: web.Application, options: AppOptions) -> web.AppRunner:
    """Runs the application."""
    set_up_access_log(options.unlogged_paths)
    return web.AppRunner(
        app,
        access_log_class=AccessLog,
        access_log=logging.getLogger(ACCESS_LOGGER) if options.is_access_logged else None,
        logger=_quiet_logger(),
        handler_cancellation=True,
        auto_decompress=False,
        keepalive_timeout=_IDLE_S,
        max_line_size=_MOST_HEADER_BYTES,
        max_field_size=_MOST_HEADER_BYTES,
        max_headers=_MOST_HEADERS,
        read_bufsize=_READ_BYTES,
        shutdown_timeout=1.0,
    )


def _quiet_logger() -> logging.Logger:
    """For what aiohttp logs about connections: a traceback for each request that is not HTTP."""
    quiet = logging.getLogger(f"{__name__}.connections")
    quiet.setLevel(logging.CRITICAL)
    return quiet


class AccessLog(AbstractAccessLogger):
    """Writes uvicorn's records, which the log's formats and filters know."""

    @property
    def enabled(self) -> bool:
        """Whether lines are written at all."""
        return self.logger.isEnabledFor(logging.INFO)

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """One line per response."""
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        client = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else ""
        version = f"{request.version.major}.{request.version.minor}"
        arguments = (client, request.method, request.raw_path, version, response.status)
        self.logger.info('%s - "%s %s HTTP/%s" %d', *arguments)


class _Front:
    """Answers every request; on the event loop."""

    def __init__(self, pool: ModelPool, options: AppOptions) -> None:
        self.cors = CorsPolicy(options.network)
        self._pool = pool
        self._keys = options.api_keys
        self._open_paths = find_open_paths(is_key_everywhere=options.network.api_key_everywhere)
        self._root_path = options.network.root_path.rstrip("/")
        self._version = options.version
        self._proxy = Proxy(pool)
        self._held = HeldBytes()
        self._list = ModelList(pool, version=options.version, needs_key=bool(len(options.api_keys)))
        self._own: dict[str, Mapping[str, _Handler]] = {
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health, "POST": self._health},
            "/livez": {"GET": self._livez},
            "/readyz": {"GET": self._readyz},
            "/metrics": {"GET": self._metrics},
            "/version": {"GET": self._get_version},
            "/load": {"GET": self._load_of_server},
            "/v1/models": {"GET": self._models},
            "/running": {"GET": self._running},
            "/unload": {"GET": self._unload_all},
            "/api/models/unload": {"POST": self._unload_all},
            "/": {"GET": self._page},
            DATA_PATH: {"GET": self._status},
        }

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """The response to any request."""
        raw_path = self._without_root(request.rel_url.raw_path)
        path = unquote(raw_path) if "%" in raw_path else raw_path
        request_id = request.headers.get("X-Request-Id")
        if request_id is not None and len(request_id) <= _LONGEST_ID and request_id.isprintable():
            set_request_id(request_id)
        try:
            return await self._answer(request, path, raw_path)
        except FailedRequestError as err:
            failed = err
        except ModelRefused as refused:
            failed = FailedRequestError.from_refused(refused)
        except (web.RequestPayloadError, HttpProcessingError) as err:
            failed = FailedRequestError(400, f"The request's body cannot be read: {err}")
        except ConnectionError:  # to the client
            failed = FailedRequestError(_CLIENT_GONE, "")
        except Exception:
            logger.exception("a request failed unexpectedly")
            failed = FailedRequestError(500, "Internal server error")
        if request.transport is not None and (failed.status == _CLIENT_GONE or request.writer.output_size):
            request.transport.abort()  # a response that has begun cannot become an error
        return error_answer(failed, path)

    async def add_cors_headers(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Called before the head of a response is sent."""
        if not self.cors.is_preflight(request.method, request.headers):
            self.cors.add_headers(request.headers.get(hdrs.ORIGIN), response.headers)

    async def _answer(self, request: web.Request, path: str, raw_path: str) -> web.StreamResponse:
        method = request.method
        if self.cors.is_preflight(method, request.headers):
            status, text, headers = self.cors.answer_preflight(request.headers)
            return web.Response(status=status, text=text, headers={"Server": SERVER, **headers})
        self._check_key(request, path)
        if (own := self._own.get(path)) is not None:
            return await _by_method(own, request)
        if path.startswith(_MODELS):
            return await self._about_model(request, path.removeprefix(_MODELS))
        if path.startswith(_UNLOAD):
            return await _by_method({"POST": self._unload_named(path.removeprefix(_UNLOAD))}, request)
        if path.startswith(_UPSTREAM):
            entry, rest = self._split_upstream(raw_path.removeprefix(_UPSTREAM))
            return await self._relay(request, rest, entry)
        if path.startswith(_RESPONSES) and "model" not in request.query:
            return await self._relay(request, raw_path, await self._model_of_response(raw_path))
        return await self._relay(request, raw_path, None)

    # Requests to models

    async def _relay(self, request: web.Request, path: str, entry: ModelEntry | None) -> web.StreamResponse:
        """Passes the request on to this model, or to the one that it names."""
        if request.headers.get(hdrs.UPGRADE, "").lower() == "websocket":
            entry = entry or self._entry_of(request.query.get("model"), request, path)
            return await self._proxy.relay_websocket(request, entry, path, self._own_headers(path))
        body = RequestBody(request.content, self._held)
        try:
            scanner = create_scanner(request.headers.get(hdrs.CONTENT_TYPE, ""))
            if request.body_exists:
                await self._read_beginning(request, body, scanner, is_searched=entry is None)
            else:
                body.is_whole = True
            if entry is None:
                if scanner.is_other_type:
                    raise FailedRequestError(400, "Invalid value for `model`: expected `str`.", param="model")
                entry = self._entry_of(scanner.model or request.query.get("model"), request, path, scanner)
            call = Call(
                request=request,
                entry=entry,
                path=path,
                body=body,
                may_wait_visibly=scanner.is_stream and path in _STREAM_PATHS,
                dropped=self._own_headers(path),
            )
            return await self._proxy.relay(call)
        finally:
            body.close()

    async def _read_beginning(
        self, request: web.Request, body: RequestBody, scanner: ModelScanner, *, is_searched: bool
    ) -> None:
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # aiohttp takes other output for the begin of the response
        try:
            await body.find_model(scanner, is_needed=is_searched)
        except BodyTooLongError:
            text = f"`model` does not come within the first {MOST_SEARCHED_BYTES >> 20} MiB of the body"
            raise FailedRequestError(413, f"{text}: put it first, or use /upstream/MODEL/… .", param="model") from None

    def _entry_of(
        self, requested: str | None, request: web.Request, path: str, scanner: ModelScanner | None = None
    ) -> ModelEntry:
        """The model that a request names, or the only one there is."""
        entries = self._pool.entries
        if requested is not None:
            if (entry := self._pool.resolve(requested)) is None:
                raise self._not_found(requested)
            return entry
        is_read = request.method in (hdrs.METH_GET, hdrs.METH_HEAD)
        if is_read and not path.startswith(_MODEL_OF_ONE):
            raise FailedRequestError(404, "Not Found: the path of a model's server needs ?model=NAME.")
        if len(entries) == 1:
            return next(iter(entries.values()))
        if scanner is not None and scanner.is_invalid and request.body_exists:
            raise FailedRequestError(400, "The request body is not valid JSON, or not an object.")
        where = "the query" if is_read else "the request"
        raise FailedRequestError(400, f"Missing required field `model` in {where}: {self._offer()}.", param="model")

    def _not_found(self, requested: str) -> FailedRequestError:
        """The error for an unknown name, with the text of vLLM and what to do."""
        near = self._pool.near_names(requested)
        hint = f"Did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else f"{self._offer()}."
        return FailedRequestError(404, f"The model `{shown(requested)}` does not exist. {hint}", param="model")

    def _offer(self) -> str:
        names = [entry.name for entry in self._pool.entries.values() if not entry.unlisted]
        more = f" and {len(names) - _MOST_OFFERED} more" if len(names) > _MOST_OFFERED else ""
        return f"Served here: {', '.join(names[:_MOST_OFFERED])}{more}"

    def _split_upstream(self, raw_rest: str) -> tuple[ModelEntry, str]:
        """The model at the begin of a path, and the rest of the path; names contain slashes."""
        segments = raw_rest.split("/")
        for number in range(1, min(len(segments), _MOST_SEGMENTS) + 1):
            if (entry := self._pool.resolve(unquote("/".join(segments[:number])))) is not None:
                return entry, "/" + "/".join(segments[number:])
        raise self._not_found(unquote(segments[0]))

    def _own_headers(self, path: str) -> frozenset[str]:
        """The headers with the router's keys, which the models' servers do not get."""
        if not len(self._keys):
            return frozenset()
        return frozenset({"authorization", "x-api-key"} if is_anthropic(path) else {"authorization"})

    async def _model_of_response(self, path: str) -> ModelEntry:
        """The running model that has stored a response: only that one knows it."""
        response_id = path.removeprefix(_RESPONSES).partition("/")[0]
        for name, entry in self._pool.entries.items():
            child = self._pool.child_of(name)
            if child is not None and await self._proxy.ask(child, _RESPONSES + response_id) is not None:
                return entry
        raise FailedRequestError(404, f"Response with id '{shown(unquote(response_id))}' not found.")

    # The router's own answers

    def _check_key(self, request: web.Request, path: str) -> None:
        """Raises FailedRequestError without one of the keys, except for the open paths.

        Unlike one server, the router asks for it with OPTIONS, too: that could start a model.
        """
        if not len(self._keys) or path in self._open_paths:
            return
        scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() == "bearer" and self._keys.is_valid(key.encode("utf-8", "surrogateescape")):
            return
        given = request.headers.get("X-Api-Key") if is_anthropic(path) else None
        if given is not None and self._keys.is_valid(given.encode("utf-8", "surrogateescape")):
            return
        text = "Send one of the server's API keys as 'Authorization: Bearer KEY'."
        raise FailedRequestError(401, text, headers={"WWW-Authenticate": "Bearer"})

    async def _health(self, request: web.Request) -> web.StreamResponse:
        if not self._pool.is_draining:
            return web.Response(headers={"Server": SERVER})
        error = {"code": 503, "message": "The server is draining.", "type": "unavailable_error"}
        return json_answer({"error": error, "status": "draining"}, status=503, headers={"Retry-After": "1"})

    async def _livez(self, request: web.Request) -> web.StreamResponse:
        return web.Response(headers={"Server": SERVER})

    async def _readyz(self, request: web.Request) -> web.StreamResponse:
        requested = request.query.get("model")
        if not requested or self._pool.is_draining:
            return await self._health(request)
        problem = self._list.readiness(self._resolve(requested))
        return json_answer({"status": "ready"} if problem is None else problem, status=503 if problem else 200)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        exposition = self._list.metrics(request.headers.get(hdrs.ACCEPT))
        headers = {"Server": SERVER, "Content-Type": exposition.content_type}
        return web.Response(body=exposition.body, headers=headers)

    async def _get_version(self, request: web.Request) -> web.StreamResponse:
        return json_answer({"version": self._version})

    async def _load_of_server(self, request: web.Request) -> web.StreamResponse:
        return json_answer({"server_load": self._list.num_running()})

    async def _models(self, request: web.Request) -> web.StreamResponse:
        await self._list.learn_lengths(self._proxy.ask)
        return json_answer(self._list.models())

    async def _running(self, request: web.Request) -> web.StreamResponse:
        return json_answer(self._list.running())

    async def _page(self, request: web.Request) -> web.StreamResponse:
        page = read_page()
        headers = {"Server": SERVER, "Content-Type": "text/html; charset=utf-8", **dict(page.headers)}
        return web.Response(body=page.body, headers=headers)

    async def _status(self, request: web.Request) -> web.StreamResponse:
        return json_answer(self._list.status())

    async def _about_model(self, request: web.Request, rest: str) -> web.StreamResponse:
        """GET /v1/models/{id}, POST /v1/models/{id}/load and /unload; ids contain slashes."""
        name, _, verb = rest.rpartition("/")
        if request.method == hdrs.METH_POST and name and verb in ("load", "unload"):
            return await (self._load(request, name) if verb == "load" else self._unload_named(name)(request))

        async def show(request: web.Request) -> web.StreamResponse:
            await self._list.learn_lengths(self._proxy.ask)
            return json_answer(self._list.model(self._resolve(rest), rest))

        return await _by_method({"GET": show}, request)

    async def _load(self, request: web.Request, name: str) -> web.StreamResponse:
        _refuse_other_sites(request)
        entry = self._resolve(name)
        await self._pool.load(entry.name)
        took_s = self._list.last_start_s(entry)
        return json_answer({"id": entry.name, "status": "ready", "start_s": took_s})

    def _unload_named(self, name: str) -> _Handler:
        async def unload(request: web.Request) -> web.StreamResponse:
            _refuse_other_sites(request)
            entry = self._resolve(name)
            await self._pool.unload(entry.name)
            return json_answer({"id": entry.name, "status": "stopped"})

        return unload

    async def _unload_all(self, request: web.Request) -> web.StreamResponse:
        """llama-swap's answer is the text OK."""
        _refuse_other_sites(request)
        await self._list.unload_all()
        return web.Response(text="OK", headers={"Server": SERVER})

    def _resolve(self, name: str) -> ModelEntry:
        if (entry := self._pool.resolve(name)) is None:
            raise self._not_found(name)
        return entry

    def _without_root(self, path: str) -> str:
        root = self._root_path
        return path[len(root) :] or "/" if root and (path + "/").startswith(root + "/") else path


async def _by_method(handlers: Mapping[str, _Handler], request: web.Request) -> web.StreamResponse:
    method = hdrs.METH_GET if request.method == hdrs.METH_HEAD else request.method
    if (handler := handlers.get(method)) is None:
        raise FailedRequestError(405, "Method Not Allowed", headers={"Allow": ", ".join(handlers)})
    return await handler(request)


def _refuse_other_sites(request: web.Request) -> None:
    """A page of another site could send such a request without asking before."""
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        raise FailedRequestError(403, "Pages of other sites must not start or stop models.")


async def _expect_later(request: web.Request) -> None:
    """The client is asked for the body once it is read."""
