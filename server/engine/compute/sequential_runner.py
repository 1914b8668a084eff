"""Runs any causal LM with the model's own cache, one sequence after the other.

This runner is for models that keep state beyond keys and values (Mamba, hybrid models), or that implement
attention themselves (ALiBi, some remote code). It is slower than the packed runner.
"""

import inspect
import logging
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import Any

import torch
from transformers import PreTrainedModel

from server.engine.compute.batch import StepLogits
from server.engine.prompt_features import PlacedRows, embed
from server.engine.sequence import Chunk

logger = logging.getLogger(__name__)

_CACHE_NAMES = ("past_key_values", "cache_params", "cache")
_TOLERANCE = 0.1
"""The largest allowed difference between logits, as a share of the largest logit. Rounding in half
precision causes smaller differences. A model that continues wrongly from its cache causes larger ones."""


class SequentialRunner:
    """Has the interface of `PackedRunner`. Stores each sequence's cache object in `Sequence.model_cache`.

    If the model does not continue correctly from its own cache, every step computes each sequence from the
    first token.
    """

    name = "sequential"
    can_split_prompts = False

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        parameters = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._cache_name = next((name for name in _CACHE_NAMES if name in parameters), None)
        if not self._can_continue():
            logger.warning("%s is computed from the first token in every step", type(model).__name__)
            self._cache_name = None

    def step(self, chunks: Seq[Chunk]) -> StepLogits:
        rows: list[slice] = []
        parts: list[torch.Tensor] = []
        num_rows = 0
        for chunk in chunks:
            logits = self._compute(chunk)
            kept = logits if chunk.wants_all_logits else logits[-1:]
            parts.append(kept)
            rows.append(slice(num_rows, num_rows + kept.shape[0]))
            num_rows += kept.shape[0]
        return StepLogits(list(chunks), torch.cat(parts), rows)

    def prepare(self) -> Iterator[None]:
        return iter(())

    def _compute(self, chunk: Chunk) -> torch.Tensor:
        sequence = chunk.sequence
        embeds = sequence.features.embeds if sequence.features is not None else None
        if self._cache_name is None:
            logits = self._forward(sequence.token_ids[: chunk.end], embeds=embeds).logits
            return logits[0, chunk.begin :]  # type: ignore[no-any-return]
        output = self._forward(
            sequence.token_ids[chunk.begin : chunk.end],
            begin=chunk.begin,
            cache=sequence.model_cache,
            embeds=embeds if not chunk.begin else None,
        )
        sequence.model_cache = output[self._cache_name]
        return output.logits[0]  # type: ignore[no-any-return]

    def _forward(
        self, token_ids: list[int], *, begin: int = 0, cache: Any = None, embeds: torch.Tensor | None = None
    ) -> Any:
        """Computes tokens. `embeds` are a prompt's embeddings, and replace those of the first tokens."""
        device = self._model.device
        kwargs: dict[str, Any] = {"use_cache": self._cache_name is not None}
        if self._cache_name is not None:
            kwargs[self._cache_name] = cache
        if self._takes_positions:
            # Some hybrids would count positions from 0 again.
            kwargs["position_ids"] = torch.arange(begin, begin + len(token_ids), device=device)[None]
        with torch.inference_mode():
            input_ids = torch.tensor([token_ids], device=device)
            if embeds is None:
                return self._model(input_ids=input_ids, **kwargs)
            inputs_embeds = embed(self._model, input_ids, [PlacedRows(0, embeds)])
            return self._model(inputs_embeds=inputs_embeds, **kwargs)

    def _can_continue(self) -> bool:
        """Whether the model's cache and one more token give the same logits as all tokens at once."""
        if self._cache_name is None:
            return False
        token_ids = list(range(6))
        try:
            whole = self._forward(token_ids).logits[0, -1]
            cache = self._forward(token_ids[:-1])[self._cache_name]
            continued = self._forward(token_ids[-1:], begin=len(token_ids) - 1, cache=cache).logits[0, -1]
        except (KeyError, TypeError, ValueError, AttributeError):
            return False
        difference = (continued - whole).abs().max()
        return bool(difference < _TOLERANCE * whole.abs().max())
