"""Typed configuration of `bench liveness`; standard library only, built once by the command line."""

from dataclasses import dataclass, field, fields, replace
from typing import Final, Literal, get_args

from server.errors import ConfigError
from vllm_cli.bench.config import ServersConfig, check_counts

PlainKind = Literal["tokenize-chat", "chat", "images", "prompt_embeds", "pooling"]
Kind = Literal[PlainKind, "mixed"]
"""Kinds of load; `mixed` cycles through the plain kinds that all servers accept."""
EmbedDtype = Literal["bfloat16", "float16", "float32"]

PLAIN_KINDS: Final[tuple[PlainKind, ...]] = get_args(PlainKind)

_CONCURRENCY: Final[dict[Kind, int]] = {"prompt_embeds": 16, "mixed": 100}
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
    """Columns of the tensor: the model's hidden size."""
    embed_dtype: EmbedDtype = "bfloat16"
    batch: int = 8
    """Texts to embed in one request."""
    max_tokens: int = 1
    """Tokens to generate, for the kinds that generate."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int):
                check_counts({"--" + item.name.replace("_", "-"): value})

    @property
    def smallest(self) -> "PayloadShape":
        """The smallest request of each kind, to find out whether a server accepts the kind."""
        return replace(self, turns=1, turn_chars=20, image_px=32, embed_rows=4, batch=1, max_tokens=1)


@dataclass(frozen=True, kw_only=True)
class LivenessConfig(ServersConfig):
    """The load of `bench liveness`."""

    kinds: tuple[Kind, ...] = ("tokenize-chat",)
    concurrency: int | None = None
    """Requests in flight; None takes 300, for `prompt_embeds` 16, for `mixed` 100."""
    num_requests: int | None = None
    """Requests per round; None takes two for each one in flight."""
    duration_s: float | None = None
    """Repeats the requests of a round in the same order for this long; None sends each once."""
    shape: PayloadShape = field(default_factory=PayloadShape)
    accepted_statuses: tuple[int, ...] = ()
    """Error statuses that count as served."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kinds:
            raise ConfigError("--kind", None, "given")
        check_counts({"--concurrency": self.concurrency, "--requests": self.num_requests})

    def concurrency_of(self, kind: Kind) -> int:
        """Requests of this kind in flight."""
        return self.concurrency or _CONCURRENCY.get(kind, _DEFAULT_CONCURRENCY)

    def requests_of(self, kind: Kind) -> int:
        """Number of different requests of this kind in one round."""
        return self.num_requests or max(_MIN_REQUESTS, 2 * self.concurrency_of(kind))
