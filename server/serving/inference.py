"""What every handler that runs prompts through the model uses."""

from dataclasses import dataclass

from server.config import ServerConfig
from server.engine.client import EngineClient
from server.metrics.server_metrics import ServerMetrics
from server.renderers.base import BaseRenderer
from server.serving.models import ServedModels


@dataclass(frozen=True, kw_only=True)
class Inference:
    """One per server; used on the event loop."""

    config: ServerConfig
    models: ServedModels
    renderer: BaseRenderer
    engine: EngineClient
    metrics: ServerMetrics
