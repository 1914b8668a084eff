"""The router's own answers to probes, lists, metrics, the status page, and loading or unloading by hand."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from base.status_page.page import DATA_PATH, read_page
from router.http.answers import TEXT, FailedRequestError, retry_after, shown
from router.http.client_request import ClientRequest
from router.http.model_choice import ModelChoice
from router.http.model_list import PoolListing
from router.http.proxy import Proxy
from router.model_pool import ModelPool
from server.terms.http_body.response_body import Answer, json_answer

Handler = Callable[[ClientRequest], Awaitable[Answer]]

_MODELS: Final = "/v1/models/"
_UNLOAD: Final = "/api/models/unload/"
_UNLOAD_ALL: Final = "/unload"
"""A path of llama-swap. It is the only path at which a GET changes the state of models."""
_VERBS: Final = ("load", "sleep", "unload")


class RouterAnswer(NamedTuple):
    """The router's own answer to a request."""

    handler: Handler
    is_read: bool
    """Whether the request changes nothing, so that it neither starts nor stops a model."""


class KeyCheck(Protocol):
    """Says which requests get all facts. Paths that need no key show others only names, phases and counts."""

    @property
    def needs_key(self) -> bool: ...

    def is_valid_in(self, request: ClientRequest) -> bool: ...


class RouterAnswers:
    """The router's own answers. Used on the event loop. Only `load` starts a model."""

    def __init__(self, pool: ModelPool, proxy: Proxy, choice: ModelChoice, keys: KeyCheck, *, version: str) -> None:
        """`proxy` requests facts from models' servers that only these servers have."""
        self._keys = keys
        self._pool = pool
        self._proxy = proxy
        self._choice = choice
        self._version = version
        self._list = PoolListing(pool, version=version, needs_key=keys.needs_key)
        self._handlers: dict[str, Mapping[str, Handler]] = {
            "/health": {"GET": self.health},
            "/ping": {"GET": self.health, "POST": self.health},
            "/livez": {"GET": self._livez},
            "/readyz": {"GET": self.readyz},
            "/metrics": {"GET": self.metrics},
            "/version": {"GET": self.report_version},
            "/load": {"GET": self._report_load},
            "/v1/models": {"GET": self.list_models},
            "/models": {"GET": self.list_models},
            "/startupz": {"GET": self._livez},
            "/running": {"GET": self._list_running},
            _UNLOAD_ALL: {"GET": self._unload_all},
            "/api/models/unload": {"POST": self._unload_all},
            "/": {"GET": self._page},
            DATA_PATH: {"GET": self.status},
        }
        self.changes: Mapping[str, Callable[[str, ClientRequest], Awaitable[Answer]]] = {
            "/models/load": partial(self._change, "load"),
            "/models/unload": partial(self._change, "unload"),
        }
        """Path of llama-server's router -> its handler. The body of the POST names the model."""

    @property
    def paths(self) -> set[str]:
        """The paths with an answer, but not the one that unloads all: with a slash, it lacks a name."""
        return {*self._handlers, *self.changes} - {_UNLOAD.rstrip("/")}

    async def keep_answers(self) -> None:
        """Called before a model's process stops. A router of several models answers nothing for it."""

    def close_page(self) -> None:
        """Turns the page off, also that of the only model's server."""
        self._handlers["/"] = {"GET": self._refuse_page}

    def find(self, request: ClientRequest) -> RouterAnswer | None:
        """The router's own answer. None if a model must answer. A wrong method raises FailedRequestError."""
        path = request.path
        handlers = self._handlers.get(path) or self._find_by_prefix(path)
        if handlers is None:
            return None
        is_read = request.is_read and path != _UNLOAD_ALL
        if (handler := handlers.get("GET" if is_read else request.method)) is None:
            allowed = ", ".join(handlers).encode()
            raise FailedRequestError(405, "Method Not Allowed", headers=((b"allow", allowed),))
        return RouterAnswer(handler, is_read)

    def _find_by_prefix(self, path: str) -> Mapping[str, Handler] | None:
        """The handlers of a path that ends with the name of a model, which may contain slashes."""
        if path.startswith(_UNLOAD):
            return {"POST": partial(self._change, "unload", path.removeprefix(_UNLOAD))}
        if not path.startswith(_MODELS):
            return None
        rest = path.removeprefix(_MODELS)
        handlers: dict[str, Handler] = {"GET": partial(self._show_model, rest)}
        name, _, verb = rest.rpartition("/")
        if name and verb in _VERBS:
            handlers["POST"] = partial(self._change, verb, name)
        return handlers

    async def health(self, request: ClientRequest) -> Answer:
        if not self._pool.is_draining:
            has_commands = any(entry.foreign for entry in self._pool.entries.values())
            return Answer(b"OK", headers=TEXT) if has_commands else Answer()  # llama-swap's body
        error = {"code": 503, "message": "The server is draining.", "type": "unavailable_error"}
        return json_answer({"error": error, "status": "draining"}, status=503, headers=retry_after(1))

    async def _livez(self, request: ClientRequest) -> Answer:
        return Answer()

    async def readyz(self, request: ClientRequest) -> Answer:
        requested = request.query_value("model")
        if not requested or self._pool.is_draining:
            return await self.health(request)
        entry = self._pool.resolve(requested)
        is_hidden = entry is not None and entry.unlisted and not self._keys.is_valid_in(request)
        if entry is None or is_hidden:  # needs no key, so it names no other models
            raise FailedRequestError(404, f"The model `{shown(requested)}` does not exist.", param="model")
        return self._report_readiness(entry.name, request)

    def _report_readiness(self, name: str, request: ClientRequest) -> Answer:
        problem = self._list.readiness(name, has_key=self._keys.is_valid_in(request))
        return json_answer({"status": "ready"} if problem is None else problem, status=503 if problem else 200)

    async def metrics(self, request: ClientRequest) -> Answer:
        exposition = self._list.metrics(request.header(b"accept"))
        return Answer(exposition.body, headers=((b"content-type", exposition.content_type.encode()),))

    async def report_version(self, request: ClientRequest) -> Answer:
        return json_answer({"version": self._version})

    async def _report_load(self, request: ClientRequest) -> Answer:
        return json_answer({"server_load": sum(status.num_running for status in self._pool.view())})

    async def list_models(self, request: ClientRequest) -> Answer:
        await self._list.learn_lengths(self._proxy.ask)
        return json_answer(self._list.models())

    async def _show_model(self, name: str, request: ClientRequest) -> Answer:
        entry = self._choice.by_name(name)
        await self._list.learn_lengths(self._proxy.ask)
        return json_answer(self._list.model(entry, name))

    async def _list_running(self, request: ClientRequest) -> Answer:
        return json_answer(self._list.running())

    async def _page(self, request: ClientRequest) -> Answer:
        page = read_page()
        headers = ((name.lower().encode(), value.encode()) for name, value in page.headers)
        return Answer(page.body, headers=((b"content-type", b"text/html; charset=utf-8"), *headers))

    async def _refuse_page(self, request: ClientRequest) -> Answer:
        raise FailedRequestError(404, "Not Found")

    async def status(self, request: ClientRequest) -> Answer:
        return json_answer(self._list.status(has_key=self._keys.is_valid_in(request)))

    async def _change(self, verb: str, name: str, request: ClientRequest) -> Answer:
        """Loads the model, puts it to sleep or unloads it. The member `success` is llama-server's."""
        entry = self._choice.by_name(name)
        changes = {"load": self._pool.load, "sleep": self._pool.sleep, "unload": self._pool.unload}
        status = await changes[verb](entry.name)
        answer: dict[str, Any] = {"success": True, "id": entry.name, "status": status}
        if verb == "load":
            starts = (each.last_start_s for each in self._pool.view() if each.entry.name == entry.name)
            answer["start_s"] = next(starts, None)  # None if the model was removed meanwhile
        return json_answer(answer)

    async def _unload_all(self, request: ClientRequest) -> Answer:
        """Unloads all models. The answer is the text OK, as from llama-swap."""
        await asyncio.gather(*map(self._pool.unload, self._pool.entries))
        return Answer(b"OK", headers=TEXT)
