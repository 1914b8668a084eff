"""One request for pooled prompts on its way through preprocessing, the engine and postprocessing."""

from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from server.protocol.pooling import PoolingFields
from server.protocol.usage import Usage
from server.serving.request_context import RequestContext
from server.types import EngineOutput, PoolingInfo, PoolingParams

T = TypeVar("T", bound=PoolingFields)


class PooledPrompt(NamedTuple):
    """A prompt as the engine takes it."""

    token_ids: list[int]
    token_type_ids: list[int] | None = None
    """Which text of a pair each token is of."""


@dataclass(kw_only=True)
class PoolingServeContext(Generic[T]):
    """Steps hand it on: each fills in what the next one needs. Only one of them has it at a time."""

    request: T
    request_id: str
    """As the answer carries it."""
    model_name: str
    created: int
    pooling_params: PoolingParams
    """The same for all prompts, unless a step makes others of it."""
    info: PoolingInfo
    timing: RequestContext
    prompts: list[PooledPrompt] = field(default_factory=list)
    """Filled in by preprocessing."""
    outputs: list[EngineOutput] = field(default_factory=list)
    """The engine's, in the prompts' order."""
    num_queries: int = 0
    """Of scores: how many of the prompts stand on the left side."""

    @property
    def usage(self) -> Usage:
        """The prompts' tokens."""
        num_tokens = sum(len(prompt.token_ids) for prompt in self.prompts)
        return Usage(prompt_tokens=num_tokens, total_tokens=num_tokens, completion_tokens=0)
