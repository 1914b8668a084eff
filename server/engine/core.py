"""The core for models that generate tokens. One step schedules, computes, samples and returns outputs."""

from collections.abc import Iterable, Iterator
from time import monotonic

import torch

from server.engine.base_core import BaseCore, failed
from server.engine.compute.packed_runner import PackedRunner
from server.engine.compute.sequential_runner import SequentialRunner
from server.engine.pending import PendingSequences
from server.engine.sampling.sampler import Sampled, Sampler, add_prompt_logprobs
from server.engine.scheduler import Scheduler
from server.engine.sequence import Chunk, Sequence
from server.terms.types import EngineOutput, EnginePrompt, EngineStats


class EngineCore(BaseCore):
    """Drives pending sequences, scheduler, runner and sampler. Every method runs on the engine's thread."""

    def __init__(
        self,
        runner: PackedRunner | SequentialRunner,
        *,
        pending: PendingSequences,
        scheduler: Scheduler,
        sampler: Sampler,
    ) -> None:
        self._runner = runner
        self._pending = pending
        self._scheduler = scheduler
        self._sampler = sampler
        self._num_iteration_tokens = 0

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or self._pending.has_ready

    @property
    def stats(self) -> EngineStats:
        cache = self._scheduler.cache
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting + self._pending.num_sequences,
            kv_cache_usage=cache.num_held_tokens / cache.max_tokens,
            prefix_cache_queries=cache.num_queried_tokens,
            prefix_cache_hits=cache.num_hit_tokens,
            num_iteration_tokens=self._num_iteration_tokens,
            num_preemptions=self._scheduler.num_preemptions,
            num_threads=torch.get_num_threads(),
            num_deferred=self._pending.num_sequences,
        )

    def add(self, request_ids: Iterable[str], prompt: EnginePrompt) -> list[EngineOutput]:
        return self._pending.add(request_ids, prompt)

    def abort(self, request_ids: list[str]) -> None:
        self._pending.withdraw(request_ids)
        found = map(self._scheduler.find, request_ids)
        self._end(*(sequence for sequence in found if sequence is not None))

    def reset_prefix_cache(self, *, interrupts: bool) -> bool:
        return self._scheduler.reset_prefix_cache(interrupts=interrupts)

    def step(self) -> list[EngineOutput]:
        """Queues the sequences that have become ready, computes one batch, and returns its outputs."""
        rejected = self._pending.admit_ready()
        chunks = self._scheduler.schedule()
        self._num_iteration_tokens = sum(c.num_tokens for c in chunks)
        if not chunks:
            return rejected
        with self._scheduler.measured(chunks):
            return rejected + self._compute(chunks)

    def prepare(self) -> Iterator[None]:
        yield from self._runner.prepare()
        self._sampler.prepare()

    def _compute(self, chunks: list[Chunk]) -> list[EngineOutput]:
        result = self._runner.step(chunks)
        sequences: list[Sequence] = []
        rows: list[int] = []
        for chunk, span in zip(result.chunks, result.rows, strict=True):
            if chunk.wants_all_logits:
                add_prompt_logprobs(chunk, result.logits[span])
            if chunk.is_last:
                sequences.append(chunk.sequence)
                rows.append(span.stop - 1)
            chunk.sequence.num_computed_tokens = chunk.end
        if not sequences:
            return []
        logits = result.logits if len(rows) == len(result.logits) else result.logits[rows]
        return [self._advance(s) for s in self._sampler.sample(sequences, logits)]

    def _advance(self, sampled: Sampled) -> EngineOutput:
        sequence, token_id = sampled.sequence, sampled.token_id
        if sampled.error is not None:
            self._end(sequence)
            return failed(sequence.request_id, *sampled.error)
        is_first = sequence.is_first_pass
        prompt_logprobs, sequence.prompt_logprobs = sequence.prompt_logprobs, None
        sequence.append(token_id)
        ending = self._sampler.find_end(sequence, token_id)
        if ending.reason is not None:
            self._end(sequence)
        return EngineOutput(
            request_id=sequence.request_id,
            token_ids=[token_id],
            finish_reason=ending.reason,
            stop_token_id=ending.stop_token_id,
            logprobs=[sampled.logprob] if sampled.logprob is not None else None,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=sequence.num_cached_tokens if is_first else 0,
            queue_s=sequence.admitted_s - sequence.arrival_s if is_first else 0.0,
            prefill_s=monotonic() - sequence.admitted_s if is_first else 0.0,
            error=ending.error,
            fault="engine" if ending.error is None else "request",
            num_preemptions=sequence.num_preemptions,
        )

    def _end(self, *sequences: Sequence) -> None:
        self._scheduler.finish(*sequences)
        for sequence in sequences:
            self._pending.release(sequence)
