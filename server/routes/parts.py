"""The parts of the HTTP application, of which each route takes what it needs."""

from dataclasses import dataclass, field
from functools import cached_property

from base.lifecycle import Lifecycle, StartView
from base.security.api_keys import ApiKeys
from server.apis.responses.store import ResponseStore
from server.operation.admission import Admission
from server.operation.availability import Availability
from server.operation.drain import RunningRequests
from server.operation.inference import Inference
from server.operation.lora import LoraAdapters


@dataclass(frozen=True, kw_only=True)
class AppParts(Inference):
    """One per server; tests replace some of them by fakes."""

    lifecycle: Lifecycle
    start: StartView
    admission: Admission
    adapters: LoraAdapters
    running: RunningRequests = field(default_factory=RunningRequests)
    api_keys: ApiKeys
    response_store: ResponseStore | None
    version: str

    @cached_property
    def availability(self) -> Availability:
        """Whether requests are accepted."""
        return Availability(self.lifecycle, self.start)

    def max_body_bytes(self, *, takes_embeds: bool) -> int:
        """The largest body; what `prompt_embeds` may add to it follows from the model."""
        embeds = self.renderer.embeds_limits if takes_embeds else None
        return self.admission.limits.max_body_bytes + (0 if embeds is None else embeds.max_base64_chars)
