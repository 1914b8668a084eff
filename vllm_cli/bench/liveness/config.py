"""Typed configuration of `bench liveness`; standard library only, built once by the command line."""

from dataclasses import dataclass, field
from typing import Final, Literal

from vllm_cli.bench.config import LoadConfig

Kind = Literal["tokenize-chat", "chat", "images", "prompt_embeds", "pooling"]

_CONCURRENCY: Final[dict[Kind, int]] = {"prompt_embeds": 16}
_DEFAULT_CONCURRENCY: Final = 300
_MIN_REQUESTS: Final = 8


@dataclass(frozen=True, kw_only=True)
class PayloadShape:
    """The size of one request of each kind."""

    turns: int = 60
    """Messages of a conversation."""
    turn_chars: int = 200
    """Characters of each message, and of each text to embed."""
    image_px: int = 512
    """Width and height."""
    embed_rows: int = 8192
    """Rows of the tensor, one per token."""
    embed_hidden: int = 576
    """Columns of the tensor: the model's hidden size; its values are bfloat16."""
    batch: int = 8
    """Texts to embed in one request."""
    max_tokens: int = 1
    """Tokens to generate, for the kinds that generate."""


@dataclass(frozen=True, kw_only=True)
class LivenessConfig(LoadConfig):
    """The load of `bench liveness`."""

    kinds: tuple[Kind, ...] = ("tokenize-chat",)
    concurrency: int | None = None
    """Requests in flight; None takes 300, for `prompt_embeds` 16."""
    num_requests: int | None = None
    """Requests per round; None takes two for each one in flight."""
    duration_s: float | None = None
    """Repeats the requests of a round in the same order for this long; None sends each once."""
    shape: PayloadShape = field(default_factory=PayloadShape)
    accepted_statuses: tuple[int, ...] = ()
    """Error statuses that count as served."""

    def concurrency_of(self, kind: Kind) -> int:
        """Requests of this kind in flight."""
        return self.concurrency or _CONCURRENCY.get(kind, _DEFAULT_CONCURRENCY)

    def requests_of(self, kind: Kind) -> int:
        """Number of different requests of this kind in one round."""
        return self.num_requests or max(_MIN_REQUESTS, 2 * self.concurrency_of(kind))
