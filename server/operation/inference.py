"""The objects that every handler needs to run prompts through the model."""

from dataclasses import dataclass

from server.engine.process_link.client import EngineClient
from server.metrics.server_metrics import ServerMetrics
from server.operation.models import ServedModels
from server.renderers.base import BaseRenderer
from server.server_config import ServerConfig


@dataclass(frozen=True, kw_only=True)
class Inference:
    """One per server; used on the event loop."""

    config: ServerConfig
    models: ServedModels
    renderer: BaseRenderer
    engine: EngineClient
    metrics: ServerMetrics
