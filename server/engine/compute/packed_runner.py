"""Runs any causal LM of transformers whose only state is keys and values. One forward pass is a whole step.

transformers' own continuous batching does the same with paged attention. However, its requests can set only
temperature, top-k and top-p, and it repeats keys for grouped heads. docs/dev/decisions.md has measurements.
"""

import inspect
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import nullcontext
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from server.engine.compute.attention import PackedAttention, UnsupportedAttentionError
from server.engine.compute.batch import StepLogits, pack
from server.engine.compute.linear import pack_linear_layers
from server.engine.compute.traced_layers import LayerTracer, light_forward
from server.engine.memory.kv_cache import KVCache, LayerShape
from server.engine.prompt_features import PlacedRows, embed
from server.engine.sequence import Chunk
from server.engine.vision import language_model

_ATTENTION_NAME = "vllm_cli_packed"
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "attention"}


class PackedRunner:
    """Runs the model on packed batches. `probe` checks first that the model supports this."""

    name = "packed"
    can_split_prompts = True
    """Whether a prompt may be computed in several chunks."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._attention = PackedAttention()
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        AttentionInterface.register(_ATTENTION_NAME, self._attention)

    def probe(self) -> dict[int, LayerShape]:
        """Passes one token through the model, and returns the shapes of the layers' keys and values.

        Raises:
            UnsupportedAttentionError: the model keeps state beyond keys and values, or its attention
                does not use transformers' interface.
        """
        model = self._model
        if not getattr(model, "_supports_attention_backend", False) or getattr(model, "_is_stateful", False):
            raise UnsupportedAttentionError(f"{type(model).__name__} does not use transformers' attention interface")
        config = model.config.get_text_config(decoder=True)
        others = set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS
        if others:
            raise UnsupportedAttentionError(f"{type(model).__name__} has layers of type {', '.join(sorted(others))}")
        before = config._attn_implementation
        attending = language_model(model)
        attending.set_attn_implementation(_ATTENTION_NAME)
        try:
            zeros = torch.zeros((1, 1), dtype=torch.long, device=model.device)
            # On a GPU, the pass also makes libraries allocate memory before the cache's size is computed.
            with light_forward() if model.device.type == "cpu" else nullcontext():
                self._forward(zeros, zeros, torch.zeros(1, dtype=torch.long, device=model.device))
            if len(self._attention.shapes) != config.num_hidden_layers:
                raise UnsupportedAttentionError(
                    f"{len(self._attention.shapes)} of {config.num_hidden_layers} layers attend"
                )
        except Exception:
            attending.set_attn_implementation(before)
            raise
        return self._attention.shapes

    def use_cache(self, cache: KVCache) -> None:
        """Sets the KV cache, whose size depends on the shapes that `probe` returns."""
        self._attention.cache = cache

    @property
    def cache(self) -> KVCache:
        assert self._attention.cache is not None
        return self._attention.cache

    def step(self, chunks: Seq[Chunk]) -> StepLogits:
        """Returns logits of each chunk's last token, or of all its tokens (`Chunk.wants_all_logits`)."""
        batch = pack(
            list(chunks),
            slot_len=self.cache.slot_len,
            dtype=self._model.dtype,
            device=self._model.device,
            count_shared=self.cache.slots.count_common_tokens,
        )
        for group in batch.decode_groups:
            self.cache.slots.hide_closed(range(group.first_slot, group.last_slot))
        keep: list[int] = []
        rows: list[slice] = []
        for chunk, span in zip(batch.chunks, batch.chunk_rows, strict=True):
            first = span.start if chunk.wants_all_logits else span.stop - 1
            rows.append(slice(len(keep), len(keep) + span.stop - first))
            keep.extend(range(first, span.stop))
        self._attention.batch = batch
        try:
            kept = torch.tensor(keep, dtype=torch.long, device=self._model.device)
            logits = self._forward(batch.input_ids, batch.position_ids, kept, batch.placed_rows)
        finally:
            self._attention.batch = None
        return StepLogits(batch.chunks, logits, rows)

    def prepare(self) -> Iterator[None]:
        """Packs the model's linear layers. On a CPU, also replaces layers by graphs (`traced_layers`).

        Called once. Yields after each small piece of this work.
        """
        yield from pack_linear_layers(self._model)
        if self._model.device.type == "cpu":
            yield from LayerTracer(self._model, self._attention).trace()

    def _forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        keep: torch.Tensor,
        placed: Seq[PlacedRows] = (),
    ) -> torch.Tensor:
        kwargs: dict[str, Any] = {"logits_to_keep": keep} if self._keeps_logits else {}
        with torch.inference_mode():
            inputs = {"inputs_embeds": embed(self._model, input_ids, placed)} if placed else {"input_ids": input_ids}
            output = self._model(**inputs, position_ids=position_ids, use_cache=False, **kwargs)
        logits: torch.Tensor = output.logits[0]
        return logits if self._keeps_logits else logits.index_select(0, keep)
