"""Wires the API process's objects; everything else receives what it uses in its constructor."""

import socket
from importlib.metadata import version

from starlette.applications import Starlette

from server.app import create_app
from server.config import ModelFiles, ServerConfig
from server.engine.client import EngineClient
from server.limits import LimitsConfig
from server.metrics.server_metrics import ServerMetrics
from server.renderers.base import BaseRenderer
from server.serving.services import Services
from server.serving.start_view import StartView
from server.tracing.build import build_tracer

_DISTRIBUTION = "vllm-cli-server"


def build_services(  # noqa: PLR0913 - these are the parts of a server
    files: ModelFiles,
    renderer: BaseRenderer,
    config: ServerConfig,
    engine_connection: socket.socket,
    start: StartView,
    limits: LimitsConfig,
) -> Services:
    """Joins the renderer to the engine's client and the metrics of one server."""
    metrics = ServerMetrics(config.served_model_names[0], start)
    metrics.register_pools(renderer.pools)
    if renderer.mm_cache is not None:
        metrics.register_image_cache(renderer.mm_cache)
    return Services(
        config=config,
        limits=limits,
        files=files,
        renderer=renderer,
        engine=EngineClient(engine_connection),
        metrics=metrics,
        start=start,
        version=version(_DISTRIBUTION),
        tracer=build_tracer(config, version(_DISTRIBUTION)),
    )


def build_app(services: Services) -> Starlette:
    """The HTTP application over the services."""
    return create_app(services)
