"""What the routes work with, wired once by `server.build`."""

from dataclasses import dataclass, field
from typing import Literal

from server.config import ModelFiles, ServerConfig
from server.engine.client import EngineClient
from server.metrics import EngineMetrics, ServerMetrics
from server.protocol.errors import UnavailableInfo, UnavailableResponse
from server.renderers.base import BaseRenderer
from server.serving.gate import RequestGate
from server.serving.start_view import StartView

Status = Literal["starting", "ready", "draining", "dead"]


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything that answering a request needs; lives in the API process, on its event loop."""

    config: ServerConfig
    files: ModelFiles
    renderer: BaseRenderer
    engine: EngineClient
    metrics: ServerMetrics
    start: StartView
    version: str
    """What /version tells."""
    gate: RequestGate = field(default_factory=RequestGate)
    """`gate.close()` begins the drain."""

    @property
    def status(self) -> Status:
        """Whether requests are taken, and if not, why."""
        if self.engine.error is not None:
            return "dead"
        if self.gate.is_closed:
            return "draining"
        return "ready" if self.engine.is_ready else "starting"

    @property
    def unavailable(self) -> UnavailableResponse | None:
        """What to answer with 503; None when requests are taken."""
        match self.status:
            case "ready":
                return None
            case "starting":
                return UnavailableResponse(
                    UnavailableInfo(message="Loading model"), "starting", **self.start.progress()
                )
            case "draining":
                return UnavailableResponse(UnavailableInfo(message="The server is shutting down"), "draining")
            case "dead":
                return UnavailableResponse(UnavailableInfo(message=f"The engine died: {self.engine.error}"), "dead")

    @property
    def engine_metrics(self) -> EngineMetrics:
        """The engine's metric families, registered with first use."""
        return self.metrics.register_engine(self.engine.info, lambda: self.engine.stats)
