"""The engine core: one step schedules, computes, samples and reports. It handles token ids only, no text."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import torch

from server.engine.compute.runner import Runner, StepLogits
from server.engine.features.image_cache import ImageCache
from server.engine.features.prompt_features import FeatureBuilder, PromptFeaturesError
from server.engine.lora.adapter_config import AdapterError, AdapterMissingError
from server.engine.lora.adapters import Adapters
from server.engine.memory.cache_manager import CacheManager
from server.engine.process_link.messages import (
    AdapterReport,
    Command,
    Done,
    LoadAdapter,
    ResetEncoderCache,
    ResetPrefixCache,
)
from server.engine.sampling.guided import GuidedDecodingError, GuidedStates
from server.engine.sampling.logprobs import describe
from server.engine.sampling.sampler import Sampled, Sampler
from server.engine.scheduler import Scheduler
from server.engine.sequence import Chunk, Sequence, SequenceState
from server.types import (
    EngineOutput,
    EnginePrompt,
    EngineStats,
    FinishReason,
    PoolingParams,
    PromptInputs,
)

logger = logging.getLogger(__name__)


class _Pending(NamedTuple):
    """A sequence whose grammar is not compiled yet, or whose images are not encoded yet."""

    sequence: Sequence
    images: PromptInputs | None
    """The prompt's, if they are not encoded yet."""


class EngineCore:
    """Drives scheduler, runner and sampler; every method runs on the engine's thread."""

    def __init__(  # noqa: PLR0913
        self,
        runner: Runner,
        *,
        cache: CacheManager,
        scheduler: Scheduler,
        max_model_len: int,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        sampler: Sampler,
        guided: GuidedStates,
        features: FeatureBuilder,
        adapters: Adapters | None = None,
        images: ImageCache | None = None,
    ) -> None:
        """`adapters` is None without `--enable-lora`, `images` for models without images."""
        self._runner = runner
        self._cache = cache
        self._scheduler = scheduler
        self._max_model_len = min(max_model_len, cache.max_tokens)
        self._vocab_size = vocab_size
        self._eos_token_ids = frozenset(eos_token_ids)
        self._sampler = sampler
        self._guided = guided
        self._features = features
        self._adapters = adapters
        self._images = images
        self._pending: dict[str, _Pending] = {}
        """In order of arrival."""
        self._num_iteration_tokens = 0

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or any(self._guided.is_ready(p.sequence) for p in self._pending.values())

    @property
    def stats(self) -> EngineStats:
        """The state after the last step."""
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting + len(self._pending),
            kv_cache_usage=self._cache.num_held_tokens / self._cache.max_tokens,
            prefix_cache_queries=self._cache.num_queried_tokens,
            prefix_cache_hits=self._cache.num_hit_tokens,
            num_iteration_tokens=self._num_iteration_tokens,
            num_preemptions=self._scheduler.num_preemptions,
            running_adapters=self._name_adapters(lambda: self._scheduler.running_adapters),
            waiting_adapters=self._name_adapters(lambda: self._scheduler.waiting_adapters),
            num_threads=torch.get_num_threads(),
        )

    def add(self, request_ids: Iterable[str], prompt: EnginePrompt) -> list[EngineOutput]:
        """Queues a prompt's sequences; returns outputs only of those that it rejects."""
        fault, features = self._find_fault(prompt), None
        if fault is None and prompt.inputs is not None and prompt.inputs.mm is None:
            try:
                features = self._features.build(prompt.token_ids, prompt.inputs)
                if not features.has_token_ids and prompt.params.prompt_logprobs is not None:
                    fault = "a prompt of embeddings has no tokens whose log-probabilities could be reported"
            except PromptFeaturesError as err:
                fault = str(err)
        rejected: list[EngineOutput] = []
        for position, request_id in enumerate(request_ids):
            sequence = Sequence(request_id, prompt.token_ids, prompt.params.of_choice(position))
            sequence.features = features
            if fault is not None:
                rejected.append(_failed(sequence, fault))
            else:
                self._queue(sequence, None if features is not None else prompt.inputs)
        return rejected

    def _find_fault(self, prompt: EnginePrompt) -> str | None:
        num_tokens, largest = len(prompt.token_ids), max(prompt.token_ids, default=0)
        if not 0 < num_tokens < self._max_model_len:
            return f"a prompt of {num_tokens} tokens does not fit {self._max_model_len} tokens"
        if largest >= self._vocab_size:
            return f"token {largest} is beyond the model's {self._vocab_size} tokens"
        adapter_id = prompt.params.adapter_id
        if adapter_id and (self._adapters is None or not self._adapters.accepts(adapter_id)):
            return "its LoRA adapter has been unloaded"
        return None

    def _queue(self, sequence: Sequence, images: PromptInputs | None) -> None:
        if sequence.params.guided is not None or sequence.params.reasoning is not None:
            self._guided.start(sequence)
        if images is not None or sequence.grammar is not None:
            self._pending[sequence.request_id] = _Pending(sequence, images)
        else:
            self._scheduler.add(sequence)

    def load_adapter(self, message: LoadAdapter) -> AdapterReport:
        """Reads an adapter; blocks until it is in memory."""
        if self._adapters is None:
            return AdapterReport(message.adapter_id, "LoRA is not enabled: start with --enable-lora")
        try:
            in_use = self._scheduler.running_adapters
            self._adapters.add(message.adapter_id, message.name, Path(message.path), in_use)
        except AdapterError as err:
            return AdapterReport(message.adapter_id, str(err), is_missing=isinstance(err, AdapterMissingError))
        return AdapterReport(message.adapter_id)

    def unload_adapter(self, adapter_id: int) -> None:
        """Accepts no further requests for the adapter and frees it after the last one."""
        if self._adapters is not None:
            self._adapters.unload(adapter_id)
            self._drop_unloaded_adapters()

    def execute(self, command: Command) -> Done:
        """Executes a command at once."""
        match command:
            case ResetPrefixCache(command_id, interrupts):
                return Done(command_id, self._reset_prefix_cache(interrupts=interrupts))
            case ResetEncoderCache(command_id):
                if self._images is not None:
                    self._images.clear()
                return Done(command_id)

    def _reset_prefix_cache(self, *, interrupts: bool) -> bool:
        if self._scheduler.num_running and not interrupts:
            return False
        self._scheduler.preempt_all()
        self._cache.forget_prefixes()
        return True

    def pool(
        self, request_id: str, prompt_token_ids: list[int], token_type_ids: list[int] | None, params: PoolingParams
    ) -> EngineOutput | None:
        """Rejects the request; only `PoolingCore` pools."""
        return EngineOutput(request_id=request_id, finish_reason="error", error="this model generates text")

    def abort(self, request_ids: list[str]) -> None:
        """Ends requests without further output; ignores unknown ids, whose requests have ended."""
        pending = [self._pending.pop(each).sequence for each in request_ids if each in self._pending]
        queued = [sequence for each in request_ids if (sequence := self._scheduler.find(each)) is not None]
        self._end(*pending, *queued)

    def step(self) -> list[EngineOutput]:
        """Queues what has become ready, computes one batch and returns the outputs."""
        rejected = self._admit_pending()
        chunks = self._scheduler.schedule()
        if self._adapters is not None:
            rejected += self._require_adapters(chunks)
            chunks = [chunk for chunk in chunks if chunk.sequence.state is SequenceState.RUNNING]
        self._num_iteration_tokens = sum(c.num_tokens for c in chunks)
        if not chunks:
            return rejected
        with self._scheduler.measured(chunks):
            return rejected + self._compute(chunks)

    def _require_adapters(self, chunks: list[Chunk]) -> list[EngineOutput]:
        """Brings the step's adapters into memory; ends the sequences of those that cannot be read again."""
        assert self._adapters is not None
        errors = self._adapters.require(self._scheduler.running_adapters)
        failed = [c.sequence for c in chunks if c.sequence.adapter_id in errors]
        self._end(*failed)
        return [_failed(sequence, errors[sequence.adapter_id]) for sequence in failed]

    def _compute(self, chunks: list[Chunk]) -> list[EngineOutput]:
        result = self._runner.step(chunks)
        self._collect_prompt_logprobs(result)
        sequences: list[Sequence] = []
        rows: list[int] = []
        for chunk, span in zip(result.chunks, result.rows, strict=True):
            if chunk.is_last:
                sequences.append(chunk.sequence)
                rows.append(span.stop - 1)
        for chunk in result.chunks:
            chunk.sequence.num_computed_tokens = chunk.end
        if not sequences:
            return []
        logits = result.logits if len(rows) == len(result.logits) else result.logits[rows]
        return [self._advance(s) for s in self._sampler.sample(sequences, logits)]

    def do_idle_work(self) -> bool:
        """Does a piece of deferrable work; True while there is more."""
        if self._runner.do_idle_work():
            return True
        self._sampler.prepare()
        return False

    def _admit_pending(self) -> list[EngineOutput]:
        """Queues sequences whose grammar is ready, and encodes the images of one prompt; returns rejections.

        One prompt per step, so that other requests are not delayed. A prompt's choices share its features.
        Small grammars do not overtake a large one that waits for memory.
        """
        rejected: list[EngineOutput] = []
        has_room = True
        encoded: PromptInputs | None = None
        for request_id, (sequence, images) in list(self._pending.items()):
            is_turn = images is None or encoded is None or images is encoded
            if not is_turn or not self._guided.is_ready(sequence):
                continue
            if sequence.grammar is not None:
                has_room = has_room and self._guided.has_room(sequence.grammar)
                if not has_room:
                    continue
            del self._pending[request_id]
            try:
                self._guided.admit(sequence)
                if images is not None:
                    encoded = images
                    sequence.features = self._features.build(sequence.token_ids, images)
                self._scheduler.add(sequence)
            except (GuidedDecodingError, PromptFeaturesError) as err:
                self._guided.drop(sequence)
                rejected.append(_failed(sequence, str(err)))
                self._drop_unloaded_adapters()
        return rejected

    def _advance(self, sampled: Sampled) -> EngineOutput:
        sequence, token_id = sampled.sequence, sampled.token_id
        if sampled.error is not None:
            self._end(sequence)
            return _failed(sequence, sampled.error, is_request_fault=sampled.is_request_fault)
        is_first = sequence.is_first_pass
        prompt_logprobs, sequence.prompt_logprobs = sequence.prompt_logprobs, None
        sequence.append(token_id)
        reason, stop_token_id, error = self._finish_reason(sequence, token_id)
        output = EngineOutput(
            request_id=sequence.request_id,
            token_ids=[token_id],
            finish_reason=reason,
            stop_token_id=stop_token_id,
            logprobs=[sampled.logprob] if sampled.logprob is not None else None,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=sequence.num_cached_tokens if is_first else 0,
            queue_s=sequence.admitted_s - sequence.arrival_s if is_first else 0.0,
            prefill_s=monotonic() - sequence.admitted_s if is_first else 0.0,
            error=error,
            is_request_fault=error is not None,
            num_preemptions=sequence.num_preemptions,
        )
        if reason is not None:
            self._end(sequence)
        return output

    def _finish_reason(self, sequence: Sequence, token_id: int) -> tuple[FinishReason | None, int | None, str | None]:
        params = sequence.params
        if token_id in self._eos_token_ids and not params.ignore_eos:
            return "stop", token_id, None
        if token_id in params.stop_token_ids:
            return "stop", token_id, None
        if params.guided is not None or params.reasoning is not None:
            try:
                if self._guided.accept(sequence, token_id):
                    return "stop", None, None
            except GuidedDecodingError as err:
                return "error", None, str(err)
        if sequence.num_output_tokens >= params.max_tokens or sequence.num_tokens >= self._max_model_len:
            return "length", None, None
        return None, None, None

    def _end(self, *sequences: Sequence) -> None:
        self._scheduler.finish(*sequences)
        for sequence in sequences:
            self._guided.drop(sequence)
        self._drop_unloaded_adapters()

    def _drop_unloaded_adapters(self) -> None:
        if self._adapters is not None and self._adapters.has_unloaded:
            pending = {p.sequence.adapter_id for p in self._pending.values()}
            self._adapters.drop_unloaded(self._scheduler.running_adapters | self._scheduler.waiting_adapters | pending)

    def _name_adapters(self, find: Callable[[], set[int]]) -> tuple[str, ...]:
        return () if self._adapters is None else tuple(sorted(map(self._adapters.name_of, find())))

    def _collect_prompt_logprobs(self, result: StepLogits) -> None:
        """Adds log-probabilities of the prompt tokens after the computed ones; the first token has none."""
        for chunk, span in zip(result.chunks, result.rows, strict=True):
            if not chunk.wants_all_logits:
                continue
            sequence, wanted = chunk.sequence, chunk.sequence.params.prompt_logprobs or 0
            following = sequence.token_ids[chunk.begin + 1 : min(chunk.end + 1, sequence.num_prompt_tokens)]
            if sequence.prompt_logprobs is None:
                sequence.prompt_logprobs = [None]
            sequence.prompt_logprobs += describe(
                result.logits[span][: len(following)], following, [wanted] * len(following)
            )


def _failed(sequence: Sequence, message: str, *, is_request_fault: bool = True) -> EngineOutput:
    return EngineOutput(
        request_id=sequence.request_id, finish_reason="error", error=message, is_request_fault=is_request_fault
    )
