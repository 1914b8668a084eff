"""Finds the model of a request by the name in the body or query, by the path, or as the only model."""

from typing import Final, NamedTuple

from base.http_requests import decode
from base.wording import list_some
from router.http.answers import FailedRequestError, shown
from router.http.client_request import ClientRequest
from router.http.request_body import RequestedModel
from router.model_entry import ModelEntry
from router.model_pool import ModelPool

_WITHOUT_NAME: Final = ("/v1/", "/tokenizer_info")
"""GETs of these paths name no model, but may start the router's only model. Other GETs do not start it."""
STREAM_PATHS: Final = frozenset(
    (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
    )
)
"""Endpoints that answer with a stream of events if the body has `stream`."""
_POSTED: Final = STREAM_PATHS | frozenset(
    (
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/pooling",
        "/classify",
        "/score",
        "/v1/score",
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
        "/tokenize",
        "/detokenize",
    )
)
"""Paths of POSTs whose bodies name a model. Models' servers have more paths, unknown to the router."""
SERVED: Final = _POSTED | frozenset(
    (
        "/v1/realtime",
        "/v1/systemone",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/v1/reranking",
        "/v2/embed",
        "/reranking",
        "/generative_scoring",
        "/invocations",
        "/tokenizer_info",
        "/completion",
        "/infill",
    )
)
_SERVED_BELOW: Final = (
    "/v1/chat/completions/",
    "/v1/completions/",
    "/v1/messages/",
    "/v1/responses/",
    "/v1/audio/",
    "/v1/images/",
    "/v1/videos",
    "/inference/v1/",
    "/cohere/v2/",
    "/sdapi/v1/",
    "/audioapi/v1/",
)
"""Requests below these paths start a model. vLLM, the embedded engine or llama-swap's servers have them."""
_MOST_OFFERED: Final = 20
"""The most models that an error message names."""
_MOST_SEGMENTS: Final = 8
"""The most segments at the beginning of a path that are tried as the name of a model."""


class Upstream(NamedTuple):
    """A model, and the path that the model's server gets."""

    entry: ModelEntry
    path: str


class ModelChoice:
    """Finds models. Raises FailedRequestError with vLLM's text and the most similar names."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool

    def by_name(self, name: str) -> ModelEntry:
        if (entry := self._pool.resolve(name)) is None:
            raise self._not_found(name)
        return entry

    def by_path(self, raw_rest: str) -> Upstream:
        """The model whose name begins the path after /upstream/. The name may contain slashes."""
        segments = raw_rest.split("/")
        for number in range(min(len(segments), _MOST_SEGMENTS), 0, -1):  # tries `org/name` before `org`
            name = decode("/".join(segments[:number]))
            entry = self._pool.resolve(name)
            if entry is not None:
                return Upstream(entry, "/" + "/".join(segments[number:]))
        raise self._not_found(decode(segments[0]))

    def by_query(self, request: ClientRequest, path: str) -> ModelEntry:
        """The model that the query names. If it names none, the router's only model."""
        requested = request.query_value("model")
        return self.by_name(requested) if requested else self._only(request, path)

    def by_body(self, request: ClientRequest, path: str, requested: RequestedModel) -> ModelEntry:
        """The model that the body names, or else the query. If neither names one, the router's only model."""
        if requested.is_other_type:
            raise FailedRequestError(400, "Invalid value for `model`: expected `str`.", param="model")
        if requested.name:  # an empty name counts as missing, as in vLLM
            return self.by_name(requested.name)
        if requested.fault and len(self._pool.entries) > 1 and not request.query_value("model"):
            raise FailedRequestError(400, f"The request body {requested.fault}.")
        return self.by_query(request, path)

    def check_path(self, path: str, entry: ModelEntry) -> None:
        """Raises FailedRequestError if no engine has this path. A running model's server gets every path."""
        path = decode(path)
        if path in SERVED or path.startswith(_SERVED_BELOW) or self._pool.is_ready(entry.name):
            return
        text = (
            f"Not Found: a path that the router does not know starts no model. Use /upstream/{entry.name}{shown(path)}."
        )
        raise FailedRequestError(404, text)

    def _only(self, request: ClientRequest, path: str) -> ModelEntry:
        is_read = request.is_read
        if is_read and path in _POSTED:
            raise FailedRequestError(405, "Method Not Allowed", headers=((b"allow", b"POST"),))
        if is_read and not path.startswith(_WITHOUT_NAME):
            raise FailedRequestError(404, f"Not Found: for that of a model's server, use /upstream/NAME{path}.")
        entries = self._pool.entries
        if len(entries) == 1:
            return next(iter(entries.values()))
        if path not in _POSTED and path not in _WITHOUT_NAME:
            raise FailedRequestError(404, "Not Found: a path that the router does not know needs `model`.")
        body = "the request" if request.has_body else "the body, which is empty"
        where = "the query" if is_read else body
        raise FailedRequestError(400, f"Missing required field `model` in {where}. {self._offer()}.", param="model")

    def _not_found(self, requested: str) -> FailedRequestError:
        near = self._pool.near_names(requested)
        hint = f"Did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else f"{self._offer()}."
        return FailedRequestError(404, f"The model `{shown(requested)}` does not exist. {hint}", param="model")

    def _offer(self) -> str:
        names = [entry.name for entry in self._pool.entries.values() if not entry.unlisted]
        return f"Served here: {list_some(names, _MOST_OFFERED)}"
