"""The table of routes."""

from dataclasses import dataclass
from typing import Any

from starlette.routing import Route

from server.apis.generative_scoring import GenerativeScoringRequest, GenerativeScoringServing
from server.apis.messages.request import CountTokensRequest, MessagesRequest
from server.apis.messages.response import ANTHROPIC
from server.apis.messages.serving import MessagesServing
from server.apis.openai.chat import ChatServing
from server.apis.openai.completions import CompletionServing
from server.apis.pooling.cohere import CohereEmbeddingServing, CohereEmbedRequest
from server.apis.pooling.embedding import EmbeddingRequest, EmbeddingServing
from server.apis.pooling.pooling import ClassificationRequest, ClassificationServing, PoolingRequest, PoolingServing
from server.apis.pooling.scoring import RerankRequest, RerankServing, ScoreRequest, ScoreServing
from server.apis.responses.request import ResponsesRequest
from server.apis.responses.serving import ResponsesServing
from server.apis.tokenization import DetokenizeRequest, TokenizationServing, TokenizeRequest
from server.generation.chat_request import BatchChatRequest, ChatRequest
from server.generation.completion_request import CompletionRequest
from server.http_body.errors import OPENAI, FailureFormat
from server.operation.lora import LoadLoraAdapterRequest, LoraAdapters, UnloadLoraAdapterRequest
from server.routes.dev import DevEndpoints
from server.routes.endpoint import Handler, Intake, JsonEndpoint, LongField, T
from server.routes.health import HealthEndpoint
from server.routes.info import InfoEndpoints, ModelEndpoints, TokenizerEndpoint
from server.routes.invocations import InvocationDecoder, dispatch
from server.routes.responses import ResponseEndpoints
from server.routes.status import StatusEndpoints
from server.status_page.page import DATA_PATH


@dataclass(frozen=True, kw_only=True)
class Handlers:
    """The objects that answer the routes."""

    completions: CompletionServing
    generative_scoring: GenerativeScoringServing
    chat: ChatServing
    messages: MessagesServing
    responses: ResponsesServing
    tokenization: TokenizationServing
    embeddings: EmbeddingServing
    cohere_embeddings: CohereEmbeddingServing
    pooling: PoolingServing
    classification: ClassificationServing
    score: ScoreServing
    rerank: RerankServing
    health: HealthEndpoint
    info: InfoEndpoints
    models: ModelEndpoints
    tokenizer: TokenizerEndpoint | None
    """None without `--enable-tokenizer-info-endpoint`."""
    status: StatusEndpoints
    dev: DevEndpoints | None
    """None without `VLLM_SERVER_DEV_MODE`."""
    adapters: LoraAdapters | None
    """None unless clients may change the adapters."""


def build_routes(handlers: Handlers, intake: Intake) -> list[Route]:
    """All routes."""
    post = _PostRoutes(intake)
    return [
        *_adapter_routes(handlers, post),
        *(handlers.dev.routes() if handlers.dev is not None else ()),
        *_text_routes(handlers, post),
        *_pooling_routes(handlers, post),
        Route("/invocations", _invocations(handlers, intake), methods=["POST"]),
        *_info_routes(handlers),
    ]


class _PostRoutes:
    """Makes the routes that accept JSON."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def __call__(
        self,
        path: str,
        model: type[T],
        handle: Handler[T],
        *,
        long_field: LongField | None = None,
        failures: FailureFormat = OPENAI,
    ) -> Route:
        decoder = self._intake.decoder(model, long_field.name if long_field else None)
        endpoint = JsonEndpoint(self._intake, decoder, handle, long_field=long_field, failures=failures)
        return Route(path, endpoint, methods=["POST"])

    def max_embeds_bytes(self) -> int:
        """What `prompt_embeds` may add to a body."""
        limits = self._intake.renderer.embeds_limits
        return limits.max_base64_chars if limits is not None else 0


def _adapter_routes(handlers: Handlers, post: _PostRoutes) -> list[Route]:
    adapters = handlers.adapters
    if adapters is None:
        return []
    return [
        post("/v1/load_lora_adapter", LoadLoraAdapterRequest, adapters.load),
        post("/v1/unload_lora_adapter", UnloadLoraAdapterRequest, adapters.unload),
    ]


def _text_routes(handlers: Handlers, post: _PostRoutes) -> list[Route]:
    embeds = LongField("prompt_embeds", post.max_embeds_bytes)
    messages, tokenization = handlers.messages, handlers.tokenization
    stored = ResponseEndpoints(handlers.responses)
    return [
        post("/v1/completions", CompletionRequest, handlers.completions.create, long_field=embeds),
        post("/generative_scoring", GenerativeScoringRequest, handlers.generative_scoring.create),
        post("/v1/chat/completions", ChatRequest, handlers.chat.create),
        post("/v1/chat/completions/batch", BatchChatRequest, handlers.chat.create_batch),
        post("/v1/messages", MessagesRequest, messages.create, failures=ANTHROPIC),
        post("/v1/messages/count_tokens", CountTokensRequest, messages.count_tokens, failures=ANTHROPIC),
        post("/v1/responses", ResponsesRequest, handlers.responses.create),
        Route("/v1/responses/{response_id}", stored.retrieve, methods=["GET"]),
        Route("/v1/responses/{response_id}/cancel", stored.cancel, methods=["POST"]),
        post("/tokenize", TokenizeRequest, tokenization.tokenize),
        post("/detokenize", DetokenizeRequest, tokenization.detokenize),
    ]


def _pooling_routes(handlers: Handlers, post: _PostRoutes) -> list[Route]:
    return [
        post("/v1/embeddings", EmbeddingRequest, handlers.embeddings.create),
        post("/v2/embed", CohereEmbedRequest, handlers.cohere_embeddings.create),
        post("/pooling", PoolingRequest, handlers.pooling.create),
        post("/classify", ClassificationRequest, handlers.classification.create),
        *(post(path, ScoreRequest, handlers.score.create) for path in ("/score", "/v1/score")),
        *(post(path, RerankRequest, handlers.rerank.create) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
    ]


def _info_routes(handlers: Handlers) -> list[Route]:
    health, info, models = handlers.health, handlers.info, handlers.models
    return [
        *([Route("/tokenizer_info", handlers.tokenizer, methods=["GET"])] if handlers.tokenizer else []),
        Route("/v1/models", models.list),
        Route("/v1/models/{model:path}", models.get),
        Route("/health", health, methods=["GET"]),
        Route("/ping", health, methods=["GET", "POST"]),
        Route("/readyz", health, methods=["GET"]),
        Route("/livez", info.livez),
        Route("/startupz", info.startupz),
        Route("/version", info.version),
        Route("/load", info.load),
        Route("/metrics", info.metrics),
        Route("/openapi.json", info.openapi),
        Route("/", handlers.status.page),
        Route(DATA_PATH, handlers.status.data),
    ]


def _invocations(handlers: Handlers, intake: Intake) -> JsonEndpoint[Any]:
    handle = dispatch(
        {
            ChatRequest: handlers.chat.create,
            CompletionRequest: handlers.completions.create,
            EmbeddingRequest: handlers.embeddings.create,
            ClassificationRequest: handlers.classification.create,
            PoolingRequest: handlers.pooling.create,
            ScoreRequest: handlers.score.create,
            RerankRequest: handlers.rerank.create,
        }
    )
    return JsonEndpoint(intake, InvocationDecoder(intake), handle)
