"""Typed configuration of one run of `bench liveness`; standard library only, built once by the command line."""

from dataclasses import dataclass, field, fields, replace
from typing import Final, Literal, get_args

from server.errors import ConfigError
from vllm_cli.bench.config import IdlePolicy, TargetSpec, check_counts

PlainKind = Literal["tokenize-chat", "chat", "images", "prompt_embeds", "pooling"]
Kind = Literal[PlainKind, "mixed"]
"""What the load consists of; `mixed` takes turns between the plain kinds that all servers take."""
EmbedDtype = Literal["bfloat16", "float16", "float32"]

PLAIN_KINDS: Final[tuple[PlainKind, ...]] = get_args(PlainKind)
KINDS: Final[tuple[Kind, ...]] = (*PLAIN_KINDS, "mixed")
EMBED_DTYPES: Final[tuple[EmbedDtype, ...]] = get_args(EmbedDtype)

_CONCURRENCY: Final[dict[Kind, int]] = {"prompt_embeds": 16, "mixed": 100}
_USUAL_CONCURRENCY: Final = 300
_LEAST_REQUESTS: Final = 8


@dataclass(frozen=True, kw_only=True)
class PayloadShape:
    """How large one request of each kind is."""

    turns: int = 60
    """Messages of a conversation."""
    turn_chars: int = 200
    """Characters of each of them, and of each text to embed."""
    image_px: int = 512
    """Width and height."""
    embed_rows: int = 8192
    """Tokens whose embeddings are sent."""
    embed_hidden: int = 576
    """Numbers in each of these embeddings: the model's hidden size."""
    embed_dtype: EmbedDtype = "bfloat16"
    batch: int = 8
    """Texts to embed in one request."""
    max_tokens: int = 1
    """Tokens to generate, where a request generates any."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int):
                check_counts({"--" + item.name.replace("_", "-"): value})

    @property
    def smallest(self) -> "PayloadShape":
        """The same in small, to ask whether a server takes such requests at all."""
        return replace(self, turns=1, turn_chars=20, image_px=32, embed_rows=4, batch=1, max_tokens=1)


@dataclass(frozen=True, kw_only=True)
class LivenessConfig:
    """What to load the servers with, how much, and how often."""

    targets: tuple[TargetSpec, ...]
    """The first is side A; the others are compared with it."""
    kinds: tuple[Kind, ...] = ("tokenize-chat",)
    concurrency: int | None = None
    """Requests in flight; None takes 300, for prompt embeddings 16, for a mixture 100."""
    num_requests: int | None = None
    """Requests per round; None takes two for each one in flight."""
    duration_s: float | None = None
    """How long a round's requests go out, again and again in the same order; None sends each once."""
    num_rounds: int = 3
    shape: PayloadShape = field(default_factory=PayloadShape)
    accepted_statuses: tuple[int, ...] = ()
    """Answers that count as served, though they say that something was wrong with the request."""
    api_key: str | None = None
    idle: IdlePolicy = "pause"
    """What a started server does while another one is measured."""
    seed: int = 0
    """Seed of everything that is sent."""
    ready_timeout_s: float = 600.0
    request_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if not self.targets:
            raise ConfigError("--cmd or --url", None, "given")
        if not self.kinds:
            raise ConfigError("--kind", None, "given")
        check_counts({"--concurrency": self.concurrency, "--requests": self.num_requests, "--rounds": self.num_rounds})

    def concurrency_of(self, kind: Kind) -> int:
        """Requests of this kind in flight."""
        return self.concurrency or _CONCURRENCY.get(kind, _USUAL_CONCURRENCY)

    def requests_of(self, kind: Kind) -> int:
        """Different requests of this kind in one round."""
        return self.num_requests or max(_LEAST_REQUESTS, 2 * self.concurrency_of(kind))
