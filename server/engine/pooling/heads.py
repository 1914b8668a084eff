"""Heads of pooling models compute embeddings, scores and classes from hidden states.

As in vLLM, heads compute in float32, whatever data type the transformer has.
"""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from server.engine.pooling.encoder import Encoder, PoolingSequence
from server.engine.pooling.projection import Activation, Projection
from server.terms.config import PoolingTask, SeqPoolingType


class EmbeddingHead:
    """Computes embeddings of texts or of their tokens, on the engine's thread."""

    def __init__(self, encoder: Encoder, *, sequence_type: SeqPoolingType | None, projector: Projection | None) -> None:
        """Without a `sequence_type`, only embeddings of tokens are supported."""
        self._encoder = encoder
        self._sequence_type = sequence_type
        self._projector = projector
        self.tasks: tuple[PoolingTask, ...] = ("token_embed",) if sequence_type is None else ("embed", "token_embed")
        """The supported tasks, the default task first."""

    def pool(self, sequences: Seq[PoolingSequence]) -> list[Tensor]:
        """Returns a float32 tensor per sequence: a vector, or a row per token if the task is about tokens."""
        states = self._encoder.run(sequences).last_hidden_state
        whole = None
        if self._sequence_type is not None and any(sequence.params.task == "embed" for sequence in sequences):
            whole = self._project(_pool_sequences(states, sequences, self._sequence_type))
        results = []
        for index, sequence in enumerate(sequences):
            if whole is not None and sequence.params.task == "embed":
                vectors = whole[index]
            else:
                vectors = self._project(states[index, : sequence.num_tokens].float())
            if sequence.params.dimensions is not None:
                vectors = vectors[..., : sequence.params.dimensions]
            results.append(normalize(vectors, dim=-1) if sequence.params.use_activation else vectors)
        return results

    def _project(self, vectors: Tensor) -> Tensor:
        return vectors if self._projector is None else self._projector(vectors)


class ClassifierHead:
    """Classifies texts or tokens with a linear layer, or with the model's own head, such as BERT's pooler."""

    def __init__(
        self,
        encoder: Encoder,
        activation: Activation,
        task: PoolingTask,
        *,
        weight: Tensor | None,
        sequence_type: SeqPoolingType,
    ) -> None:
        """`weight` is that of the linear layer, after pooling by `sequence_type`. None: the own head."""
        self._encoder = encoder
        self._activation = activation
        self.tasks: tuple[PoolingTask, ...] = (task,)
        self._weight = None if weight is None else weight.float()
        self._sequence_type = sequence_type

    def pool(self, sequences: Seq[PoolingSequence]) -> list[Tensor]:
        output = self._encoder.run(sequences)
        if self._weight is None:
            logits = output.logits.float()
        else:
            logits = linear(_pool_sequences(output.last_hidden_state, sequences, self._sequence_type), self._weight)
        results = []
        for rows, sequence in zip(logits, sequences, strict=True):
            own = rows[: sequence.num_tokens] if self.tasks == ("token_classify",) else rows
            results.append(self._activation(own) if sequence.params.use_activation else own)
        return results


PoolingHead = EmbeddingHead | ClassifierHead
"""The head of a model. Both classes have the same interface."""


def _pool_sequences(states: Tensor, sequences: Seq[PoolingSequence], kind: SeqPoolingType) -> Tensor:
    """Pools each sequence into one float32 vector."""
    lengths = torch.tensor([sequence.num_tokens for sequence in sequences], device=states.device)
    match kind:
        case "CLS":
            return states[:, 0].float()
        case "LAST":
            return states[torch.arange(len(states), device=states.device), lengths - 1].float()
        case "MEAN":
            beyond = torch.arange(states.shape[1], device=states.device) >= lengths[:, None]
            return states.float().masked_fill(beyond[..., None], 0.0).sum(1) / lengths[:, None]
