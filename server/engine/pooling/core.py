"""The engine core for pooling models. A step computes one batch of prompts, without KV cache or sampling."""

from collections.abc import Iterator
from time import monotonic

import torch
from msgspec.structs import replace
from transformers import PreTrainedModel

from server.engine.base_core import BaseCore, PromptLimits, failed
from server.engine.compute.linear import multiply_in_float32, pack_linear_layers
from server.engine.phases import Phases
from server.engine.pooling.heads import PoolingSequence, choose_batch
from server.engine.pooling.loading import PoolingModel
from server.terms.config import EngineConfig, ModelFiles
from server.terms.types import EngineInfo, EngineOutput, EngineStats, PoolingParams, TensorData
from server.text.model_files import ModelKind


class PoolingCore(BaseCore):
    """Computes embeddings, scores or classes of prompts. Every method runs on the engine's thread."""

    def __init__(self, pooling: PoolingModel, config: EngineConfig) -> None:
        model = pooling.encoder.model
        self._model = model
        self._head = pooling.head
        self._max_num_seqs = config.max_num_seqs
        self._max_num_batched_tokens = config.max_num_batched_tokens or (16384 if model.device.type == "cuda" else 1024)
        self._prompt_limits = PromptLimits(pooling.max_model_len, _vocab_size(model))
        self._defaults = pooling.defaults
        """Values that requests do not set."""
        self._waiting: list[PoolingSequence] = []
        self._num_iteration_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    @property
    def stats(self) -> EngineStats:
        # Sequences that the next step can compute count as running.
        num_running = min(len(self._waiting), self._max_num_seqs)
        return EngineStats(
            num_running=num_running,
            num_waiting=len(self._waiting) - num_running,
            num_iteration_tokens=self._num_iteration_tokens,
            num_threads=torch.get_num_threads(),
        )

    def pool(
        self, request_id: str, prompt_token_ids: list[int], token_type_ids: list[int] | None, params: PoolingParams
    ) -> EngineOutput | None:
        fault = self._prompt_limits.find_fault(prompt_token_ids, num_new_tokens=0)
        if fault is not None:
            return failed(request_id, fault)
        if params.task not in self._head.tasks:
            return failed(request_id, f"this model does not support the task {params.task}")
        sequence = PoolingSequence(request_id, prompt_token_ids, self._with_defaults(params), token_type_ids)
        self._waiting.append(sequence)
        return None

    def abort(self, request_ids: list[str]) -> None:
        aborted = set(request_ids)
        self._waiting = [sequence for sequence in self._waiting if sequence.request_id not in aborted]

    @torch.inference_mode()
    def step(self) -> list[EngineOutput]:
        batch = choose_batch(self._waiting, self._max_num_seqs, self._max_num_batched_tokens)
        chosen = {id(sequence) for sequence in batch}
        self._waiting = [sequence for sequence in self._waiting if id(sequence) not in chosen]
        self._num_iteration_tokens = sum(sequence.num_tokens for sequence in batch)
        begin_s = monotonic()
        results = self._head.pool(batch)
        return [self._finish(*pair, begin_s) for pair in zip(batch, results, strict=True)]

    def prepare(self) -> Iterator[None]:
        return pack_linear_layers(self._model)

    def _with_defaults(self, params: PoolingParams) -> PoolingParams:
        is_active, dimensions = params.use_activation, params.dimensions
        if is_active is None:
            is_active = self._defaults.use_activation is not False
        if dimensions is None and params.task in ("embed", "token_embed"):
            dimensions = self._defaults.dimensions
        return replace(params, use_activation=is_active, dimensions=dimensions)

    def _finish(self, sequence: PoolingSequence, result: torch.Tensor, begin_s: float) -> EngineOutput:
        return EngineOutput(
            request_id=sequence.request_id,
            finish_reason="stop",
            queue_s=begin_s - sequence.arrival_s,
            prefill_s=monotonic() - begin_s,
            data=_tensor_data(result),
        )


def _tensor_data(tensor: torch.Tensor) -> TensorData:
    values = tensor.float().cpu().contiguous()
    return TensorData("float32", tuple(values.shape), values.numpy().data.cast("B"))


def _vocab_size(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config(decoder=True).vocab_size)


def build_pooling_core(
    kind: ModelKind, files: ModelFiles, config: EngineConfig, phases: Phases
) -> tuple[PoolingCore, EngineInfo]:
    """Loads the model and builds its engine core.

    Raises:
        EngineStartError: the model cannot be loaded or does not support the configuration.
    """
    with phases.span("load_weights"):
        pooling = PoolingModel(files, config, kind)
    model = pooling.encoder.model
    multiply_in_float32(model)
    info = EngineInfo(
        model_type=model.config.model_type,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        max_model_len=pooling.max_model_len,
        vocab_size=_vocab_size(model),
        num_slots=config.max_num_seqs,
        runner="pooling",
        spans=phases.spans,
        pooling=pooling.info,
    )
    return PoolingCore(pooling, config), info
