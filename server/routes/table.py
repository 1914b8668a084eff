"""The table of routes."""

from typing import Protocol, TypeVar

from starlette.routing import Route

from server.protocol.chat import ChatRequest
from server.protocol.classification import ClassificationRequest
from server.protocol.completions import CompletionRequest
from server.protocol.embeddings import EmbeddingRequest
from server.protocol.pooling import PoolingRequest
from server.protocol.scoring import RerankRequest, ScoreRequest
from server.protocol.tokenize import DetokenizeRequest, TokenizeRequest
from server.routes.endpoint import Handler, JsonEndpoint, LongField
from server.routes.generative import generative
from server.routes.health import HealthEndpoint
from server.routes.info import InfoEndpoints, ModelEndpoints
from server.routes.status import StatusEndpoints
from server.serving.chat import ChatServing
from server.serving.completions import CompletionServing
from server.serving.models import ServedModels
from server.serving.pooling.classification import ClassificationServing
from server.serving.pooling.embedding import EmbeddingServing
from server.serving.pooling.pooling import PoolingServing
from server.serving.pooling.scoring import RerankServing, ScoreServing
from server.serving.preparation import GenerationBuilder
from server.serving.services import Services
from server.serving.tokenization import TokenizationServing
from server.status_page.page import DATA_PATH

T = TypeVar("T")


class Post(Protocol):
    """Makes a route for POST requests."""

    def __call__(self, path: str, model: type[T], handle: Handler[T]) -> Route:
        """A route that decodes the model and answers with the handler."""


def build_routes(services: Services, health: HealthEndpoint) -> list[Route]:
    """All routes, with the objects that answer them."""
    served = ServedModels(services)
    builder = GenerationBuilder(services)
    completions = CompletionServing(services, served, builder)
    chat = ChatServing(services, served, builder)
    tokenization = TokenizationServing(services, served)
    info = InfoEndpoints(services)
    models = ModelEndpoints(services, served)
    status = StatusEndpoints(services)

    def post(path: str, model: type[T], handle: Handler[T]) -> Route:
        return Route(path, JsonEndpoint(services, model, handle), methods=["POST"])

    return [
        _completions_route(services, completions),
        post("/v1/chat/completions", ChatRequest, generative(services, "Chat Completions", chat.create)),
        *_pooling_routes(services, served, post),
        post("/tokenize", TokenizeRequest, tokenization.tokenize),
        post("/detokenize", DetokenizeRequest, tokenization.detokenize),
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
        Route("/", status.page),
        Route(DATA_PATH, status.data),
    ]


def _completions_route(services: Services, completions: CompletionServing) -> Route:
    """The one route that takes tensors."""

    def max_embeds_bytes() -> int:
        limits = services.renderer.embeds_limits
        return limits.max_base64_chars if limits is not None else 0

    endpoint = JsonEndpoint(
        services,
        CompletionRequest,
        generative(services, "Completions", completions.create),
        long_field=LongField("prompt_embeds", max_embeds_bytes),
    )
    return Route("/v1/completions", endpoint, methods=["POST"])


def _pooling_routes(services: Services, served: ServedModels, post: Post) -> list[Route]:
    """What models are for that do not generate; the others answer 404."""
    score, rerank = ScoreServing(services, served), RerankServing(services, served)
    return [
        post("/v1/embeddings", EmbeddingRequest, EmbeddingServing(services, served).create),
        post("/pooling", PoolingRequest, PoolingServing(services, served).create),
        post("/classify", ClassificationRequest, ClassificationServing(services, served).create),
        *(post(f"{prefix}/score", ScoreRequest, score.create) for prefix in ("", "/v1")),
        *(post(f"{prefix}/rerank", RerankRequest, rerank.create) for prefix in ("", "/v1", "/v2")),
    ]
