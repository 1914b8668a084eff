"""Wires the API process's objects; everything else receives what it uses in its constructor."""

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

import uvicorn

from envs.sagemaker import is_customized as is_sagemaker_customized
from server.apis.generative_scoring import GenerativeScoringServing
from server.apis.messages.serving import MessagesServing
from server.apis.openai.chat import ChatServing
from server.apis.openai.completions import CompletionServing
from server.apis.pooling.cohere import CohereEmbeddingServing
from server.apis.pooling.embedding import EmbeddingServing
from server.apis.pooling.pooling import ClassificationServing, PoolingServing
from server.apis.pooling.scoring import RerankServing, ScoreServing
from server.apis.responses.archive import ResponseArchive, build_response_store
from server.apis.responses.serving import ResponsesServing
from server.apis.responses.store import ResponseStore
from server.apis.tokenization import TokenizationServing
from server.app import ServerApp
from server.engine.process_link.client import EngineClient
from server.generation.chat_run import ChatRunner
from server.generation.generation import GenerationBuilder
from server.generation.output_parsing import OutputParsing
from server.generation.reasoning import ModelReasoning
from server.http_body.unused_fields import UnusedFields
from server.lifecycle import Lifecycle
from server.limits import LimitsConfig
from server.metrics.server_metrics import ServerMetrics
from server.operation.admission import Admission
from server.operation.availability import Availability, StartView
from server.operation.drain import ERROR_DELIVERY_S, Drain
from server.operation.engine_monitor import EngineHandle, EngineMonitor
from server.operation.inference import Inference
from server.operation.lora import LoraAdapters
from server.operation.models import ServedModels
from server.operation.readiness import EngineReadiness
from server.operation.running_requests import RunningRequests
from server.operation.telemetry import Telemetry
from server.renderers.base import BaseRenderer
from server.routes.dev import DevEndpoints
from server.routes.endpoint import Intake
from server.routes.health import HealthEndpoint
from server.routes.info import InfoEndpoints, ModelEndpoints, TokenizerEndpoint
from server.routes.middleware import build_middleware
from server.routes.status import StatusEndpoints
from server.routes.table import Handlers, build_routes
from server.security.access import Access
from server.security.api_keys import ApiKeys
from server.server_config import ServerConfig
from server.tracing.build import build_tracer
from server.transport.connection import bounded_connections
from server.transport.graceful_server import GracefulServer
from server.transport.probe_process import ProbeProcess
from server.types import EngineInfo

if TYPE_CHECKING:
    from server.tracing.tracer import Tracer

logger = logging.getLogger(__name__)

_DISTRIBUTION = "vllm-cli-server"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The launcher's objects and callbacks for the server."""

    listener: socket.socket
    """Bound and listening."""
    limits: LimitsConfig
    engine: EngineHandle
    """The engine's process."""
    engine_ready_timeout_s: float
    lifecycle: Lifecycle
    """A server that is starting; the launcher may subscribe to it."""
    start: StartView
    span: Callable[..., AbstractContextManager[None]]
    """Records a phase of the start."""
    on_serving: Callable[[], None]
    """Called once, when this server is about to accept connections on the listener."""
    on_ready: Callable[[EngineInfo], None]
    """Called once, when the first real token has been generated."""
    probes: ProbeProcess | None = None
    """Answers probes, too, while the server is ready; then `on_serving` is not called."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """The objects that `server.run` starts, uses and closes."""

    http: GracefulServer
    probes: ProbeProcess | None
    access: Access
    engine: EngineClient
    readiness: EngineReadiness
    monitor: EngineMonitor
    drain: Drain
    telemetry: Telemetry
    tracer: "Tracer | None"
    response_store: ResponseStore | None


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
    response_store: ResponseStore | None = None
    tracer: "Tracer | None" = None
    version: str


def build_server(renderer: BaseRenderer, config: ServerConfig, options: RunOptions) -> Server:
    """All objects of one server; nothing runs yet."""
    lifecycle = options.lifecycle
    server_version = version(_DISTRIBUTION)
    metrics = build_metrics(config, renderer, options.start)
    metrics.lifecycle.read_up_from(lambda: lifecycle.has_engine)
    engine = EngineClient(options.engine.connection, on_death=lifecycle.engine_ended)
    adapters = LoraAdapters(config, engine)
    parts = AppParts(
        config=config,
        renderer=renderer,
        engine=engine,
        lifecycle=lifecycle,
        start=options.start,
        metrics=metrics,
        admission=Admission(options.limits),
        adapters=adapters,
        api_keys=ApiKeys.from_config(config.network),
        response_store=build_response_store(config.generation, options.limits),
        tracer=build_tracer(config, server_version),
        version=server_version,
    )
    access = Access(config, parts.api_keys)
    app = build_app(parts)
    has_tls = access.tls_context is not None
    probes = None if has_tls or app.is_probe_seen else options.probes
    http = GracefulServer(_uvicorn_config(app, config, options.limits, access, probes))
    readiness = EngineReadiness(engine, renderer, metrics, adapters, timeout_s=options.engine_ready_timeout_s)
    monitor = EngineMonitor(
        engine,
        options.engine,
        lifecycle,
        readiness,
        watchdog_timeout_s=config.lifecycle.engine_watchdog_timeout_s,
        on_restart=metrics.lifecycle.record_restart,
    )
    drain = Drain(lifecycle, parts.running, engine, config.lifecycle, http.announce_close)
    return Server(
        http=http,
        probes=probes,
        access=access,
        engine=engine,
        readiness=readiness,
        monitor=monitor,
        drain=drain,
        telemetry=Telemetry(config.logging, engine, metrics, monitor.poll),
        tracer=parts.tracer,
        response_store=parts.response_store,
    )


def build_metrics(config: ServerConfig, renderer: BaseRenderer, start: StartView) -> ServerMetrics:
    """The metrics of a server and its renderer; the engine's families come once it has loaded the model."""
    metrics = ServerMetrics(config.served_model_names[0], start)
    metrics.register_pools(renderer.pools)
    if renderer.mm_cache is not None:
        metrics.register_image_cache(renderer.mm_cache)
    return metrics


def build_app(parts: AppParts) -> ServerApp:
    """The HTTP application; it answers from now on, by the lifecycle's state."""
    config, engine, metrics = parts.config, parts.engine, parts.metrics
    engine.subscribe_stats(lambda stats: metrics.engine.record_step(stats))
    metrics.register_rejections(parts.admission.num_rejected)
    availability = Availability(parts.lifecycle, parts.start)
    handlers = _build_handlers(parts, availability)
    intake = Intake(
        availability=availability,
        admission=parts.admission,
        running=parts.running,
        renderer=parts.renderer,
        loop_metrics=metrics.loop,
        engine=engine,
        unused_fields=UnusedFields(is_rejecting=config.generation.reject_unknown_fields),
        tracer=parts.tracer,
    )
    is_customized = is_sagemaker_customized()
    app = ServerApp(
        handlers.health,
        build_routes(handlers, intake),
        build_middleware(config, parts.api_keys, metrics.http),
        root_path=config.network.root_path,
        is_probe_seen=is_customized or bool(config.middleware) or config.enable_request_id_headers,
    )
    if is_customized:
        _customize_for_sagemaker(app, parts.admission.limits)
    return app


def _customize_for_sagemaker(app: ServerApp, limits: LimitsConfig) -> None:
    try:
        with kept_log_levels():
            # the package that it needs is optional
            from server.routes.sagemaker import customize  # noqa: PLC0415
    except ImportError as err:
        logger.warning("SageMaker's variables are ignored: install vllm-cli-server[sagemaker] (%s)", err)
    else:
        customize(app, max_body_bytes=limits.max_body_bytes)


def _build_handlers(parts: AppParts, availability: Availability) -> Handlers:
    config, engine, metrics = parts.config, parts.engine, parts.metrics
    lifecycle, start = parts.lifecycle, parts.start
    models = ServedModels(config.served_model_names, engine, parts.adapters, root=config.model)
    inference = Inference(config=config, models=models, renderer=parts.renderer, engine=engine, metrics=metrics)
    reasoning = ModelReasoning(config.generation, parts.renderer)
    builder = GenerationBuilder(inference, reasoning)
    parsing = OutputParsing(config.generation, parts.renderer, reasoning)
    runner = ChatRunner(inference, builder, parsing)
    archive = ResponseArchive(parts.response_store, parts.renderer)
    return Handlers(
        completions=CompletionServing(inference, builder),
        generative_scoring=GenerativeScoringServing(inference, builder),
        chat=ChatServing(inference, runner),
        messages=MessagesServing(inference, runner),
        responses=ResponsesServing(inference, runner, archive, parts.running, parts.admission.limits),
        tokenization=TokenizationServing(models, parts.renderer, engine),
        embeddings=EmbeddingServing(inference),
        cohere_embeddings=CohereEmbeddingServing(inference),
        pooling=PoolingServing(inference),
        classification=ClassificationServing(inference),
        score=ScoreServing(inference),
        rerank=RerankServing(inference),
        health=HealthEndpoint(availability),
        info=InfoEndpoints(lifecycle, start, parts.running, metrics, version=parts.version),
        models=ModelEndpoints(availability, models),
        tokenizer=TokenizerEndpoint(parts.renderer) if config.enable_tokenizer_info_endpoint else None,
        adapters=parts.adapters if config.allow_runtime_lora_updating else None,
        dev=DevEndpoints(availability, engine, parts.renderer, config) if config.server_dev_mode else None,
        status=StatusEndpoints(lifecycle, start, engine, metrics, version=parts.version),
    )


def _uvicorn_config(
    app: ServerApp, config: ServerConfig, limits: LimitsConfig, access: Access, probes: ProbeProcess | None
) -> uvicorn.Config:
    uvicorn_config = uvicorn.Config(
        app,
        loop="none",
        http=bounded_connections(limits, access.tls_context, probes),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level=config.logging.uvicorn_log_level,
        access_log=not config.logging.disable_access_log,
        server_header=False,
        timeout_keep_alive=config.timeout_keep_alive_s,
        timeout_graceful_shutdown=ERROR_DELIVERY_S,
    )
    uvicorn_config.load()
    return uvicorn_config


@contextmanager
def kept_log_levels() -> Iterator[None]:
    """Restores the levels of the root logger: importing SageMaker's package sets them to ERROR."""
    root = logging.getLogger()
    adjustable: list[logging.Logger | logging.Handler] = [root, *root.handlers]
    levels = [(each, each.level) for each in adjustable]
    try:
        yield
    finally:
        for each, level in levels:
            each.setLevel(level)
