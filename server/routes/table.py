"""The table of routes."""

from typing import TypeVar

from starlette.routing import Route

from server.protocol.chat import ChatRequest
from server.protocol.completions import CompletionRequest
from server.protocol.tokenize import DetokenizeRequest, TokenizeRequest
from server.routes.endpoint import Handler, JsonEndpoint
from server.routes.health import HealthEndpoint
from server.routes.info import InfoEndpoints, ModelEndpoints
from server.serving.chat import ChatServing
from server.serving.completions import CompletionServing
from server.serving.models import ServedModels
from server.serving.preparation import GenerationBuilder
from server.serving.services import Services
from server.serving.tokenization import TokenizationServing

T = TypeVar("T")


def build_routes(services: Services, health: HealthEndpoint) -> list[Route]:
    """All routes, with the objects that answer them."""
    served = ServedModels(services)
    builder = GenerationBuilder(services)
    completions = CompletionServing(services, served, builder)
    chat = ChatServing(services, served, builder)
    tokenization = TokenizationServing(services, served)
    info = InfoEndpoints(services)
    models = ModelEndpoints(services, served)

    def post(path: str, model: type[T], handle: Handler[T]) -> Route:
        return Route(path, JsonEndpoint(services, model, handle), methods=["POST"])

    return [
        post("/v1/completions", CompletionRequest, completions.create),
        post("/v1/chat/completions", ChatRequest, chat.create),
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
    ]
