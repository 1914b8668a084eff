"""The table of routes, and the objects that answer them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
from server.apis.responses.archive import ResponseArchive
from server.apis.responses.request import ResponsesRequest
from server.apis.responses.serving import ResponsesServing
from server.apis.responses.store import ResponseStore
from server.apis.tokenization import DetokenizeRequest, TokenizationServing, TokenizeRequest
from server.engine.process_link.client import EngineClient
from server.generation.chat_request import BatchChatRequest, ChatRequest
from server.generation.chat_run import ChatRunner
from server.generation.completion_request import CompletionRequest
from server.generation.generation import GenerationBuilder
from server.generation.output_parsing import OutputParsing
from server.generation.reasoning import ModelReasoning
from server.http_body.errors import OPENAI, FailureFormat
from server.http_body.unused_fields import UnusedFields
from server.lifecycle import Lifecycle, StartView
from server.metrics.server_metrics import ServerMetrics
from server.operation.admission import Admission
from server.operation.availability import Availability
from server.operation.drain import RunningRequests
from server.operation.inference import Inference
from server.operation.lora import LoadLoraAdapterRequest, LoraAdapters, UnloadLoraAdapterRequest
from server.operation.models import ServedModels
from server.operation.request_context import RequestContext
from server.renderers.base import BaseRenderer
from server.routes.dev import DevEndpoints
from server.routes.endpoint import Handler, Intake, JsonEndpoint, ResponseBody, T
from server.routes.health import HealthEndpoint
from server.routes.info import InfoEndpoints, ModelEndpoints
from server.routes.invocations import find_model
from server.routes.responses import ResponseEndpoints
from server.routes.status import StatusEndpoints
from server.security.api_keys import ApiKeys
from server.server_config import ServerConfig
from server.status_page.page import DATA_PATH

if TYPE_CHECKING:
    from server.http_body.decoding import RequestDecoder
    from server.tracing.tracer import Tracer


@dataclass(frozen=True, kw_only=True)
class AppParts:
    """The parts of the HTTP application; tests replace some of them by fakes."""

    config: ServerConfig
    renderer: BaseRenderer
    engine: EngineClient
    lifecycle: Lifecycle
    start: StartView
    metrics: ServerMetrics
    admission: Admission
    adapters: LoraAdapters
    running: RunningRequests = field(default_factory=RunningRequests)
    api_keys: ApiKeys
    response_store: ResponseStore | None
    tracer: "Tracer | None"
    version: str


def build_routes(parts: AppParts, availability: Availability) -> list[Route]:
    """All routes."""
    config, renderer, engine = parts.config, parts.renderer, parts.engine
    models = ServedModels(config.served_model_names, engine, parts.adapters, root=config.model)
    inference = Inference(config=config, models=models, renderer=renderer, engine=engine, metrics=parts.metrics)
    intake = Intake(
        availability=availability,
        admission=parts.admission,
        running=parts.running,
        renderer=renderer,
        loop_metrics=parts.metrics.loop,
        engine=engine,
        unused_fields=UnusedFields(is_rejecting=config.generation.reject_unknown_fields),
        tracer=parts.tracer,
    )
    post = _PostRoutes(intake)
    return [
        *(_adapter_routes(parts.adapters, post) if config.allow_runtime_lora_updating else ()),
        *(DevEndpoints(availability, engine, renderer, config).routes() if config.server_dev_mode else ()),
        *_text_routes(parts, inference, post),
        *_pooling_routes(inference, post),
        post.invocations(),
        *_model_routes(ModelEndpoints(availability, models, renderer), config),
        *_info_routes(parts, HealthEndpoint(availability)),
    ]


class _PostRoutes:
    """Makes the routes that accept JSON."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._decoders: dict[type, RequestDecoder[Any]] = {}
        self._handlers: dict[type, Handler[Any]] = {}

    def __call__(
        self,
        path: str,
        model: type[T],
        handle: Handler[T],
        *,
        takes_embeds: bool = False,
        failures: FailureFormat = OPENAI,
    ) -> Route:
        """The route that passes requests of this kind to the handler."""
        decoder = self._intake.decoder(model, takes_embeds=takes_embeds)
        self._decoders[model], self._handlers[model] = decoder, handle
        endpoint = JsonEndpoint(self._intake, decoder.decode, handle, takes_embeds=takes_embeds, failures=failures)
        return Route(path, endpoint, methods=["POST"])

    def invocations(self) -> Route:
        """The route that passes a request to the handler of its kind."""
        endpoint = JsonEndpoint(self._intake, self._decode, self._dispatch)
        return Route("/invocations", endpoint, methods=["POST"])

    def _decode(self, body: bytes) -> Any:
        return self._decoders[find_model(body, self._intake.engine.info.pooling)].decode(body)

    async def _dispatch(self, request: Any, context: RequestContext) -> ResponseBody:
        return await self._handlers[type(request)](request, context)


def _adapter_routes(adapters: LoraAdapters, post: _PostRoutes) -> list[Route]:
    return [
        post("/v1/load_lora_adapter", LoadLoraAdapterRequest, adapters.load),
        post("/v1/unload_lora_adapter", UnloadLoraAdapterRequest, adapters.unload),
    ]


def _text_routes(parts: AppParts, inference: Inference, post: _PostRoutes) -> list[Route]:
    config, renderer = parts.config.generation, parts.renderer
    reasoning = ModelReasoning(config, renderer)
    builder = GenerationBuilder(inference, reasoning)
    runner = ChatRunner(inference, builder, OutputParsing(config, renderer, reasoning))
    chat, messages = ChatServing(inference, runner), MessagesServing(inference, runner)
    tokenization = TokenizationServing(inference.models, renderer, parts.engine)
    archive = ResponseArchive(parts.response_store, renderer)
    responses = ResponsesServing(inference, runner, archive, parts.running, parts.admission.limits)
    stored = ResponseEndpoints(responses)
    completions = CompletionServing(inference, builder)
    scoring = GenerativeScoringServing(inference, builder)
    return [
        post("/v1/completions", CompletionRequest, completions.create, takes_embeds=True),
        post("/generative_scoring", GenerativeScoringRequest, scoring.create),
        post("/v1/chat/completions", ChatRequest, chat.create),
        post("/v1/chat/completions/batch", BatchChatRequest, chat.create_batch),
        post("/v1/messages", MessagesRequest, messages.create, failures=ANTHROPIC),
        post("/v1/messages/count_tokens", CountTokensRequest, messages.count_tokens, failures=ANTHROPIC),
        post("/v1/responses", ResponsesRequest, responses.create),
        Route("/v1/responses/{response_id}", stored.retrieve, methods=["GET"]),
        Route("/v1/responses/{response_id}/cancel", stored.cancel, methods=["POST"]),
        post("/tokenize", TokenizeRequest, tokenization.tokenize),
        post("/detokenize", DetokenizeRequest, tokenization.detokenize),
    ]


def _pooling_routes(inference: Inference, post: _PostRoutes) -> list[Route]:
    score, rerank = ScoreServing(inference).create, RerankServing(inference).create
    return [
        post("/v1/embeddings", EmbeddingRequest, EmbeddingServing(inference).create),
        post("/v2/embed", CohereEmbedRequest, CohereEmbeddingServing(inference).create),
        post("/pooling", PoolingRequest, PoolingServing(inference).create),
        post("/classify", ClassificationRequest, ClassificationServing(inference).create),
        *(post(path, ScoreRequest, score) for path in ("/score", "/v1/score")),
        *(post(path, RerankRequest, rerank) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
    ]


def _model_routes(models: ModelEndpoints, config: ServerConfig) -> list[Route]:
    return [
        *([Route("/tokenizer_info", models.tokenizer)] if config.enable_tokenizer_info_endpoint else []),
        Route("/v1/models", models.list),
        Route("/v1/models/{model:path}", models.get),
    ]


def _info_routes(parts: AppParts, health: HealthEndpoint) -> list[Route]:
    info = InfoEndpoints(parts.lifecycle, parts.start, parts.running, parts.metrics, version=parts.version)
    status = StatusEndpoints(parts.lifecycle, parts.start, parts.engine, parts.metrics, version=parts.version)
    return [
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
