"""The state of one pooling request: its prompts, then the engine's outputs."""

from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from server.apis.pooling.request import Truncatable
from server.http_body.usage import Usage
from server.operation.request_context import RequestContext
from server.types import EngineOutput, PoolingInfo, PoolingParams

T = TypeVar("T", bound=Truncatable)


class PooledPrompt(NamedTuple):
    """A tokenized prompt."""

    token_ids: list[int]
    token_type_ids: list[int] | None = None
    """The text of a pair that each token belongs to."""


@dataclass(kw_only=True)
class PoolingServeContext(Generic[T]):
    """Passed from step to step; each fills in what the next one needs. Used by one thread at a time."""

    request: T
    request_id: str
    """The id in the response."""
    model_name: str
    created: int
    pooling_params: PoolingParams
    """The same for all prompts, unless a step derives others from it."""
    info: PoolingInfo
    request_context: RequestContext
    prompts: list[PooledPrompt] = field(default_factory=list)
    """Filled in by the first step."""
    outputs: list[EngineOutput] = field(default_factory=list)
    """The engine's outputs, in the order of the prompts."""
    num_queries: int = 0
    """For scores: how many of the prompts are queries."""

    @property
    def usage(self) -> Usage:
        """The number of prompt tokens."""
        num_tokens = sum(len(prompt.token_ids) for prompt in self.prompts)
        return Usage(prompt_tokens=num_tokens, total_tokens=num_tokens, completion_tokens=0)
