"""Heads of pooling models compute embeddings, scores and classes of several prompts at once.

The prompts are padded on the right to the longest one. As in vLLM, heads compute in float32, whatever
data type the transformer has.
"""

import inspect
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize
from transformers import PreTrainedModel

from server.engine.pooling.projection import Activation, Projection
from server.terms.config import PoolingTask, SeqPoolingType
from server.terms.types import PoolingParams


@dataclass(frozen=True, slots=True)
class PoolingSequence:
    """A prompt and its pooling parameters."""

    request_id: str
    token_ids: list[int]
    params: PoolingParams
    token_type_ids: list[int] | None = None
    """For each token of a pair of texts, the number of its text. None for a single text."""
    arrival_s: float = field(default_factory=monotonic)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


def choose_batch(waiting: list[PoolingSequence], max_num_seqs: int, max_num_tokens: int) -> list[PoolingSequence]:
    """Chooses the sequence that has waited longest, and sequences whose lengths are closest to its length.

    A batch is padded to its longest sequence, so similar lengths need the least padding. The oldest
    sequence is always chosen, so that no sequence waits for ever, even if it has more than `max_num_tokens`.
    Otherwise, this limits the tokens of a batch, including padding.
    """
    oldest = waiting[0]
    window = sorted(waiting[:max_num_seqs], key=lambda sequence: sequence.num_tokens)
    begin = next(index for index, sequence in enumerate(window) if sequence is oldest)
    end = begin + 1
    while True:
        size = end - begin + 1
        sides: list[tuple[int, bool]] = []
        if begin and window[end - 1].num_tokens * size <= max_num_tokens:
            sides.append((oldest.num_tokens - window[begin - 1].num_tokens, False))
        if end < len(window) and window[end].num_tokens * size <= max_num_tokens:
            sides.append((window[end].num_tokens - oldest.num_tokens, True))
        if not sides:
            return window[begin:end]
        _, grows_up = min(sides)
        begin, end = (begin, end + 1) if grows_up else (begin - 1, end)


class Encoder:
    """Calls a transformers model, with or without a head, for a batch of sequences."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        text = model.config.get_text_config(decoder=True)
        parameters = inspect.signature(model.forward).parameters
        self._pad_id = _pad_id(text)
        self._has_token_types = getattr(text, "type_vocab_size", 0) > 1 and "token_type_ids" in parameters
        self._options: dict[str, Any] = {"use_cache": False} if "use_cache" in parameters else {}

    def run(self, sequences: Seq[PoolingSequence]) -> Any:
        """Returns the model's output for the batch. Rows behind a sequence's end have no meaning."""
        lengths = torch.tensor([sequence.num_tokens for sequence in sequences])
        device, longest = self.model.device, int(lengths.max())
        ids = [_padded(sequence.token_ids, longest, self._pad_id) for sequence in sequences]
        inputs: dict[str, Any] = {"input_ids": torch.tensor(ids, device=device)} | self._options
        if int(lengths.min()) < longest:
            is_token = torch.arange(longest) < lengths[:, None]
            inputs["attention_mask"] = is_token.long().to(device)
        if self._has_token_types and any(sequence.token_type_ids is not None for sequence in sequences):
            types = [_padded(sequence.token_type_ids or [], longest, 0) for sequence in sequences]
            inputs["token_type_ids"] = torch.tensor(types, device=device)
        return self.model(**inputs)


def _padded(ids: list[int], length: int, filler: int) -> list[int]:
    return ids + [filler] * (length - len(ids))


def _pad_id(config: Any) -> int:
    """The id of the padding token. Models with learned positions recognise padding by this id."""
    pad_id = getattr(config, "pad_token_id", None)
    return pad_id if isinstance(pad_id, int) and 0 <= pad_id < config.vocab_size else 0


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
            total = states.float().masked_fill(beyond[..., None], 0.0).sum(1)
            return total / lengths[:, None]
