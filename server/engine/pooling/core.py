"""The engine core for pooling models: a step batches, computes and reports. No KV cache, no sampling."""

from collections.abc import Iterable
from time import monotonic

import torch
from msgspec.structs import replace

from server.engine.compute.linear import LinearPacker
from server.engine.pooling.heads import PoolingHead
from server.engine.pooling.late_interaction import KeptQueries, QueryMissingError
from server.engine.pooling.sequence import BatchLimits, PoolingSequence, choose_batch
from server.engine.process_link.messages import AdapterReport, Command, Done, LoadAdapter
from server.pooler_config import PoolerConfig
from server.types import EngineOutput, EnginePrompt, EngineStats, PoolingParams, TensorData


class PoolingCore:
    """Replaces `EngineCore` in the engine's loop; every method runs on the engine's thread."""

    def __init__(  # noqa: PLR0913
        self,
        head: PoolingHead,
        *,
        limits: BatchLimits,
        max_model_len: int,
        vocab_size: int,
        defaults: PoolerConfig,
        packer: LinearPacker | None = None,
    ) -> None:
        """`defaults` apply where a request sets no value; `packer` packs layers while the engine is idle."""
        self._head = head
        self._limits = limits
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size
        self._defaults = defaults
        self._waiting: list[PoolingSequence] = []
        self._packer = packer
        self._queries = KeptQueries()
        self._num_iteration_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    @property
    def stats(self) -> EngineStats:
        """The state after the last step; sequences that the next step may compute count as running."""
        num_running = min(len(self._waiting), self._limits.max_num_seqs)
        return EngineStats(
            num_running=num_running,
            num_waiting=len(self._waiting) - num_running,
            num_iteration_tokens=self._num_iteration_tokens,
            num_threads=torch.get_num_threads(),
        )

    def add(self, request_ids: Iterable[str], prompt: EnginePrompt) -> list[EngineOutput]:
        """Rejects the request: the model does not generate."""
        return [_failed(request_id, "this model does not generate text") for request_id in request_ids]

    def load_adapter(self, message: LoadAdapter) -> AdapterReport:
        """Rejects the adapter."""
        return AdapterReport(message.adapter_id, "LoRA adapters need a model that generates text")

    def execute(self, command: Command) -> Done:
        """Does nothing: there is nothing to forget."""
        return Done(command.command_id)

    def unload_adapter(self, adapter_id: int) -> None:
        """Does nothing: there is no adapter."""

    def pool(
        self, request_id: str, prompt_token_ids: list[int], token_type_ids: list[int] | None, params: PoolingParams
    ) -> EngineOutput | None:
        """Queues a request; returns an output only to reject it."""
        num_tokens = len(prompt_token_ids)
        if not 0 < num_tokens <= self._max_model_len:
            return _failed(request_id, f"a prompt of {num_tokens} tokens does not fit {self._max_model_len} tokens")
        if max(prompt_token_ids) >= self._vocab_size:
            message = f"token {max(prompt_token_ids)} is beyond the model's {self._vocab_size} tokens"
            return _failed(request_id, message)
        if params.task not in self._head.tasks:
            return _failed(request_id, f"this model does not support the task {params.task}")
        sequence = PoolingSequence(request_id, prompt_token_ids, self._with_defaults(params), token_type_ids)
        self._waiting.append(sequence)
        return None

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests without further output and drops their kept queries."""
        aborted = set(request_ids)
        self._waiting = [sequence for sequence in self._waiting if sequence.request_id not in aborted]
        self._queries.drop(aborted)

    @torch.inference_mode()
    def step(self) -> list[EngineOutput]:
        """Computes one batch and returns its results."""
        batch = choose_batch(self._waiting, self._limits)
        chosen = {id(sequence) for sequence in batch}
        self._waiting = [sequence for sequence in self._waiting if id(sequence) not in chosen]
        self._num_iteration_tokens = sum(sequence.num_tokens for sequence in batch)
        begin_s = monotonic()
        results = self._head.pool(batch)
        return [self._finish(*pair, begin_s) for pair in zip(batch, results, strict=True)]

    def do_idle_work(self) -> bool:
        """Packs one linear layer; True while there are more."""
        return self._packer is not None and self._packer.pack_next()

    def _with_defaults(self, params: PoolingParams) -> PoolingParams:
        is_active, dimensions = params.use_activation, params.dimensions
        if is_active is None:
            is_active = self._defaults.use_activation is not False
        if dimensions is None and params.task in ("embed", "token_embed"):
            dimensions = self._defaults.dimensions
        return replace(params, use_activation=is_active, dimensions=dimensions)

    def _finish(self, sequence: PoolingSequence, result: torch.Tensor, begin_s: float) -> EngineOutput:
        try:
            answer = self._queries.interact(sequence, result)
        except QueryMissingError as err:
            return _failed(sequence.request_id, str(err))
        return EngineOutput(
            request_id=sequence.request_id,
            finish_reason="stop",
            queue_s=begin_s - sequence.arrival_s,
            prefill_s=monotonic() - begin_s,
            data=None if answer is None else _tensor_data(answer),
        )


def _tensor_data(tensor: torch.Tensor) -> TensorData:
    values = tensor.float().cpu().contiguous()
    return TensorData("float32", tuple(values.shape), values.numpy().data.cast("B"))


def _failed(request_id: str, message: str) -> EngineOutput:
    return EngineOutput(request_id=request_id, finish_reason="error", error=message)
