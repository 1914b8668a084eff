"""Answers requests to a router with one model (`serve MODEL --idle-stop`), also while it is stopped."""

import asyncio
from functools import partial
from typing import Final

from base.status_page.page import DATA_PATH
from router.http.answers import retry_after
from router.http.client_request import ClientRequest
from router.http.model_choice import ModelChoice
from router.http.proxy import Proxy
from router.http.router_answers import KeyCheck, RouterAnswers
from router.model_pool import ModelPool, ModelStatus
from server.terms.http_body.response_body import Answer, json_answer
from startup.port.probe_http import MODEL_STATE_HEADER

_KEPT: Final = ("/metrics", "/startupz", "/v1/models", "/version")
"""Paths at which the router repeats the server's last answer while the model does not run."""

_SILENT: Final = {
    "error": {"code": 503, "message": "The model's server does not answer /health.", "type": "unavailable_error"},
    "status": "silent",
}


class SingleModelAnswers(RouterAnswers):
    """The answers of a router with one model. Only `load` starts it. No answer counts as a request to it."""

    def __init__(self, pool: ModelPool, proxy: Proxy, choice: ModelChoice, keys: KeyCheck, *, version: str) -> None:
        super().__init__(pool, proxy, choice, keys, version=version)
        (self._name,) = pool.entries
        self._last: dict[str, Answer] = {}
        self._handlers["/startupz"] = {"GET": self._report_start}
        for path, verb in (("/models/load", "load"), ("/models/unload", "unload")):
            self._handlers[path] = {"POST": partial(self._change, verb, self._name)}

    async def health(self, request: ClientRequest) -> Answer:
        """Answers 200 if the model runs, or if it has run before and a request can start it now.

        After a failure, a request cannot start the model during the pause. With --restart, the answer is 503
        from a failure until the model is ready again.
        """
        status = self._list.status_of(self._name)
        if self._pool.is_draining:
            return await super().health(request)
        if status.outcome.has_failed and (status.entry.restart_limit is not None or status.retry_after_s):
            return self._report_unready(status, request)
        if status.state != "ready" and status.last_start_s is not None:
            return Answer(headers=((MODEL_STATE_HEADER.encode(), status.state.encode()),))
        if (answer := await self._fetch("/health")) is not None:
            return answer
        return self._report_unready(status, request)

    def _report_unready(self, status: ModelStatus, request: ClientRequest) -> Answer:
        body = self._list.readiness(self._name, has_key=self._keys.is_valid_in(request)) or _SILENT
        return json_answer(body, status=503, headers=retry_after(status.retry_after_s or 0))

    async def readyz(self, request: ClientRequest) -> Answer:
        """Reports whether the router is ready. With `?model`, reports whether the model is ready."""
        if request.query_value("model") == "":
            return self._report_readiness(self._name, request)
        return await super().readyz(request)

    async def metrics(self, request: ClientRequest) -> Answer:
        own, answer = self._list.metrics(None), await self._find("/metrics")
        body = own.body if answer is None else own.body + answer.body
        return Answer(body, headers=((b"content-type", own.content_type.encode()),))

    async def report_version(self, request: ClientRequest) -> Answer:
        answer = await self._find("/version")
        return answer or await super().report_version(request)

    async def list_models(self, request: ClientRequest) -> Answer:
        answer = await self._find("/v1/models")
        return answer or await super().list_models(request)

    async def _report_start(self, request: ClientRequest) -> Answer:
        answer = await self._find("/startupz")
        return answer or await self.health(request)

    async def status(self, request: ClientRequest) -> Answer:
        """The page's data, from the embedded engine and from each server of ours that starts itself.

        Of a vLLM that serves, the page shows the router's own data, with the buttons that load and unload it.
        """
        shown = self._list.status_of(self._name)
        state = shown.state
        has_own = state == "starting" or shown.entry.engine == "embedded"
        answer = await self._fetch(DATA_PATH) if has_own else None
        if answer is None or answer.status != 200:
            status = self._list.status(has_key=self._keys.is_valid_in(request))
            return json_answer({**status, "status": state})
        return answer

    async def _find(self, path: str) -> Answer | None:
        """The server's answer if its status is 200. If not, its last answer with status 200, or None.

        vLLM has some paths only while it starts, and their last answers are not those of a server that runs.
        """
        answer = await self._fetch(path)
        if answer is not None and answer.status == 200:
            self._last[path] = answer
        elif answer is not None and answer.status == 404:
            self._last.pop(path, None)
        return self._last.get(path)

    async def _fetch(self, path: str) -> Answer | None:
        child = self._pool.process_of(self._name)
        return None if child is None else await self._proxy.fetch(child, path)

    async def keep_answers(self) -> None:
        """Keeps the last answers of the model's server, which are repeated while it is stopped."""
        await asyncio.gather(*map(self._find, _KEPT))
