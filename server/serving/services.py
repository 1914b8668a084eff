"""What the routes work with, wired once by `server.build`."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from server.config import ModelFiles, ServerConfig
from server.engine.client import EngineClient
from server.limits import LimitsConfig
from server.metrics.server_metrics import EngineMetrics, ServerMetrics
from server.protocol.errors import UnavailableInfo, UnavailableResponse
from server.renderers.base import BaseRenderer
from server.security.api_keys import ApiKeys
from server.serving.admission import Admission
from server.serving.gate import RequestGate
from server.serving.recovery import Recovery
from server.serving.start_view import StartView

if TYPE_CHECKING:
    from server.tracing.tracer import Tracer

Status = Literal["starting", "ready", "restarting", "draining", "dead"]


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
    recovery: Recovery = field(default_factory=Recovery)
    """What becomes of an engine that dies."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    tracer: "Tracer | None" = None
    """With `--otlp-traces-endpoint`."""

    @cached_property
    def api_keys(self) -> ApiKeys:
        """The keys of which requests must carry one; none where everybody may come."""
        return ApiKeys.from_config(self.config)

    @cached_property
    def admission(self) -> Admission:
        """Who is let in when there is much to do."""
        return Admission(self.limits)

    @property
    def status(self) -> Status:
        """Whether requests are taken, and if not, why."""
        is_alive = self.engine.is_alive
        if not is_alive and not self.recovery.is_possible:
            return "dead"
        if self.gate.is_closed:
            return "draining"
        if not is_alive or self.recovery.reason is not None:
            return "restarting"
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
            case "restarting":
                info = UnavailableInfo(message=f"The engine died and is being started again: {self._death}")
                return UnavailableResponse(info, "restarting", **self.recovery.progress())
            case "draining":
                return UnavailableResponse(UnavailableInfo(message="The server is shutting down"), "draining")
            case "dead":
                return UnavailableResponse(UnavailableInfo(message=f"The engine died: {self._death}"), "dead")

    @property
    def _death(self) -> str:
        return self.recovery.reason or self.engine.error or "its process is ending"

    @property
    def engine_metrics(self) -> EngineMetrics:
        """The engine's metric families, registered with first use."""
        return self.metrics.register_engine(self.engine.info, lambda: self.engine.stats)
