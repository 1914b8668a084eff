"""The value of `--pooler-config`; standard library only."""

from dataclasses import dataclass
from typing import Literal, get_args

from base.errors import ConfigError

SeqPoolingType = Literal["CLS", "LAST", "MEAN"]
PoolingTask = Literal["embed", "classify", "token_embed", "token_classify"]


@dataclass(frozen=True, kw_only=True)
class PoolerConfig:
    """How a pooling model turns hidden states into vectors or scores; None leaves it to the model's files."""

    task: PoolingTask | None = None
    """The task of /pooling if the model supports several, and the basis of scores."""
    pooling_type: SeqPoolingType | Literal["ALL"] | None = None
    """Sets one of the next two."""
    seq_pooling_type: SeqPoolingType | None = None
    tok_pooling_type: Literal["ALL"] | None = None
    use_activation: bool | None = None
    """Whether embeddings are normalized, and logits become probabilities."""
    dimensions: int | None = None
    """Length of embeddings, for models whose embeddings may be shortened."""
    logit_mean: float | None = None
    logit_sigma: float | None = None
    """Logits are calibrated before their activation: (logit - mean) / sigma."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("task", get_args(PoolingTask)),
            ("pooling_type", (*get_args(SeqPoolingType), "ALL")),
            ("seq_pooling_type", get_args(SeqPoolingType)),
            ("tok_pooling_type", ("ALL",)),
            ("use_activation", (True, False)),
        ):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ConfigError(f"--pooler-config.{name}", value, f"one of {', '.join(map(str, choices))}")
        if self.pooling_type is not None and (self.seq_pooling_type or self.tok_pooling_type):
            raise ConfigError(
                "--pooler-config.pooling_type", self.pooling_type, "left out where seq_ or tok_pooling_type is given"
            )
        if self.dimensions is not None and not _is_positive_int(self.dimensions):
            raise ConfigError("--pooler-config.dimensions", self.dimensions, "1 or more")
        for name in ("logit_mean", "logit_sigma"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int | float) or (name == "logit_sigma" and value == 0)):
                raise ConfigError(f"--pooler-config.{name}", value, "a number, and logit_sigma not 0")

    @property
    def sequence_type(self) -> SeqPoolingType | None:
        """How the vectors of all tokens become one; None if it is not given."""
        if self.pooling_type is None or self.pooling_type == "ALL":
            return self.seq_pooling_type
        return self.pooling_type


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
