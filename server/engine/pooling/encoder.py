"""Runs a transformer on several prompts at once, padded on the right to the longest prompt."""

import inspect
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import torch
from transformers import PreTrainedModel

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
            inputs["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long().to(device)
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
