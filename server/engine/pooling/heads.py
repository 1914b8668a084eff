"""Heads of pooling models: from hidden states to embeddings, scores and classes.

Heads compute in float32 for any type of the transformer, as in vLLM.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from server.config import PoolingTask, SeqPoolingType
from server.engine.pooling.encoder import Encoder, HiddenStates, PoolingSequence

Activation = Callable[[Tensor], Tensor]
Projector = Callable[[Tensor], Tensor]


class PoolingHead(Protocol):
    """One per model; used on the engine's thread."""

    @property
    def tasks(self) -> tuple[PoolingTask, ...]:
        """Supported tasks, the default first."""

    def pool(self, sequences: Seq[PoolingSequence]) -> list[Tensor]:
        """A float32 tensor for each sequence: a vector, or one row per token in tasks for tokens."""


class EmbeddingHead:
    """Embeddings of texts, or of their tokens."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        sequence_type: SeqPoolingType | None,
        projector: Projector | None = None,
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


class EncoderClassifierHead:
    """Classes of texts by a model that has its own head, such as BERT's pooler with a linear layer.

    Tokens are classified without the pooler, as in vLLM.
    """

    def __init__(self, encoder: Encoder, calibrated: "Calibration") -> None:
        self._encoder = encoder
        self._transformer = Encoder(encoder.model.base_model)
        self._token_classifier = getattr(encoder.model, "classifier", None)
        self._calibrated = calibrated

    @property
    def tasks(self) -> tuple[PoolingTask, ...]:
        return ("classify",) if self._token_classifier is None else ("classify", "token_classify")

    def pool(self, sequences: Seq[PoolingSequence]) -> list[Tensor]:
        is_whole = sequences[0].params.task == "classify"  # a server has one task
        logits = self._encoder.logits(sequences) if is_whole else self._token_logits(sequences)
        return [self._calibrated(rows.float(), sequence) for rows, sequence in zip(logits, sequences, strict=True)]

    def _token_logits(self, sequences: Seq[PoolingSequence]) -> list[Tensor]:
        """Each token as a text of its own, since the classifiers of RoBERTa read a text's first token."""
        assert self._token_classifier is not None
        hidden = self._transformer.hidden_states(sequences)
        return [self._token_classifier(hidden.of(index)[:, None]).flatten(1) for index in range(len(sequences))]


class LinearClassifierHead:
    """Classes of texts, or of their tokens, by one linear layer over the transformer's output."""

    tasks: tuple[PoolingTask, ...] = ("classify", "token_classify")

    def __init__(
        self, encoder: Encoder, weight: Tensor, calibrated: "Calibration", *, sequence_type: SeqPoolingType
    ) -> None:
        self._encoder = encoder
        self._weight = weight.float()
        self._calibrated = calibrated
        self._sequence_type = sequence_type

    def pool(self, sequences: Seq[PoolingSequence]) -> list[Tensor]:
        hidden = self._encoder.hidden_states(sequences)
        whole = pool_sequences(hidden, self._sequence_type)
        results = []
        for index, sequence in enumerate(sequences):
            rows = whole[index] if sequence.params.task == "classify" else hidden.of(index).float()
            results.append(self._calibrated(linear(rows, self._weight), sequence))
        return results


class TokenClassifierHead:
    """Classes of tokens by a model that has its own head."""

    tasks: tuple[PoolingTask, ...] = ("token_classify",)

    def __init__(self, encoder: Encoder, calibrated: "Calibration") -> None:
        self._encoder = encoder
        self._calibrated = calibrated

    def pool(self, sequences: Seq[PoolingSequence]) -> list[Tensor]:
        logits = self._encoder.logits(sequences).float()
        return [
            self._calibrated(rows[: sequence.num_tokens], sequence)
            for rows, sequence in zip(logits, sequences, strict=True)
        ]


class Calibration:
    """Converts logits to reported values."""

    def __init__(self, activation: Activation, *, mean: float | None = None, sigma: float | None = None) -> None:
        self._activation = activation
        self._mean = mean
        self._sigma = sigma

    def __call__(self, logits: Tensor, sequence: PoolingSequence) -> Tensor:
        """(logit - mean) / sigma, then the activation if the request uses it."""
        if self._mean is not None:
            logits = logits - self._mean
        if self._sigma is not None:
            logits = logits / self._sigma
        return self._activation(logits) if sequence.params.use_activation else logits


def pool_sequences(hidden: HiddenStates, kind: SeqPoolingType) -> Tensor:
    """One float32 vector per sequence."""
    states, lengths = hidden.states, hidden.lengths.to(hidden.states.device)
    match kind:
        case "CLS":
            return states[:, 0].float()
        case "LAST":
            return states[torch.arange(len(states), device=states.device), lengths - 1].float()
        case "MEAN":
            beyond = torch.arange(states.shape[1], device=states.device) >= lengths[:, None]
            return states.float().masked_fill(beyond[..., None], 0.0).sum(1) / lengths[:, None]
