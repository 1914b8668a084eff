"""Heads of pooling models compute embeddings, scores and classes from hidden states.

As in vLLM, heads compute in float32, whatever data type the transformer has.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from server.engine.pooling.encoder import Encoder, HiddenStates, PoolingSequence
from server.engine.pooling.projection import Activation, Projection
from server.terms.config import PoolingTask, SeqPoolingType


class PoolingHead(Protocol):
    """The head of a model, used on the engine's thread."""

    @property
    def tasks(self) -> tuple[PoolingTask, ...]:
        """The supported tasks, the default task first."""

    def pool(self, sequences: Seq[PoolingSequence]) -> list[Tensor]:
        """Returns a float32 tensor per sequence: a vector, or a row per token if the task is about tokens."""


class EmbeddingHead:
    """Computes embeddings of texts or of their tokens."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        sequence_type: SeqPoolingType | None,
        projector: Projection | None = None,
    ) -> None:
        """Without a `sequence_type`, only embeddings of tokens are supported."""
        self._encoder = encoder
        self._sequence_type = sequence_type
        self._projector = projector

    @property
    def tasks(self) -> tuple[PoolingTask, ...]:
        return ("token_embed",) if self._sequence_type is None else ("embed", "token_embed")

    def pool(self, sequences: Seq[PoolingSequence]) -> list[Tensor]:
        hidden = self._encoder.hidden_states(sequences)
        whole = None
        if self._sequence_type is not None and any(sequence.params.task == "embed" for sequence in sequences):
            whole = self._project(pool_sequences(hidden, self._sequence_type))
        results = []
        for index, sequence in enumerate(sequences):
            is_whole = whole is not None and sequence.params.task == "embed"
            vectors = whole[index] if is_whole and whole is not None else self._project(hidden.of(index).float())
            if sequence.params.dimensions is not None:
                vectors = vectors[..., : sequence.params.dimensions]
            results.append(normalize(vectors, dim=-1) if sequence.params.use_activation else vectors)
        return results

    def _project(self, vectors: Tensor) -> Tensor:
        return vectors if self._projector is None else self._projector(vectors)


class OwnClassifierHead:
    """Classifies texts or tokens with the head of the model's own class, such as BERT's pooler."""

    def __init__(
        self, encoder: Encoder, activation: Activation, *, task: Literal["classify", "token_classify"]
    ) -> None:
        self._encoder = encoder
        self._activation = activation
        self.tasks: tuple[PoolingTask, ...] = (task,)

    def pool(self, sequences: Seq[PoolingSequence]) -> list[Tensor]:
        logits: Seq[Tensor] = self._encoder.logits(sequences).float().unbind()
        if self.tasks == ("token_classify",):
            logits = [rows[: sequence.num_tokens] for rows, sequence in zip(logits, sequences, strict=True)]
        return _activated(logits, sequences, self._activation)


class LinearClassifierHead:
    """Classifies texts with one linear layer on top of the transformer's output."""

    tasks: tuple[PoolingTask, ...] = ("classify",)

    def __init__(
        self, encoder: Encoder, weight: Tensor, activation: Activation, *, sequence_type: SeqPoolingType
    ) -> None:
        self._encoder = encoder
        self._weight = weight.float()
        self._activation = activation
        self._sequence_type = sequence_type

    def pool(self, sequences: Seq[PoolingSequence]) -> list[Tensor]:
        vectors = pool_sequences(self._encoder.hidden_states(sequences), self._sequence_type)
        return _activated(linear(vectors, self._weight), sequences, self._activation)


def _activated(logits: Iterable[Tensor], sequences: Seq[PoolingSequence], activation: Activation) -> list[Tensor]:
    """Applies the activation to the logits of sequences whose parameters have `use_activation`."""
    pairs = zip(logits, sequences, strict=True)
    return [activation(rows) if sequence.params.use_activation else rows for rows, sequence in pairs]


def pool_sequences(hidden: HiddenStates, kind: SeqPoolingType) -> Tensor:
    """Pools each sequence into one float32 vector."""
    states, lengths = hidden.states, hidden.lengths.to(hidden.states.device)
    match kind:
        case "CLS":
            return states[:, 0].float()
        case "LAST":
            return states[torch.arange(len(states), device=states.device), lengths - 1].float()
        case "MEAN":
            beyond = torch.arange(states.shape[1], device=states.device) >= lengths[:, None]
            return states.float().masked_fill(beyond[..., None], 0.0).sum(1) / lengths[:, None]
