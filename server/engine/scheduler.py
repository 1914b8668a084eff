"""Chooses the chunks of each step: first running sequences, then prompts in the order of arrival.

A sequence waits until the cache manager has a slot and memory for it. If running sequences need more memory
than there is, the youngest sequence is preempted: it returns to the queue, and is computed again later.
"""

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from time import monotonic

from server.engine.memory.cache_manager import CacheManager
from server.engine.sequence import Chunk, Sequence
from server.engine.step_pace import StepPace


class Scheduler:
    """Owns the queue. Every method runs on the engine's thread."""

    def __init__(self, cache: CacheManager, *, max_num_batched_tokens: int, pace: StepPace | None = None) -> None:
        """`pace` limits a step's prompt tokens. Without it, only `max_num_batched_tokens` limits them."""
        self.cache = cache
        self._pace = pace
        self._max_num_batched_tokens = max_num_batched_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        """The running sequences, the oldest first."""
        self._by_id: dict[str, Sequence] = {}
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)
        self._by_id[sequence.request_id] = sequence

    def find(self, request_id: str) -> Sequence | None:
        """Returns the sequence with this id, or None once that sequence has ended."""
        return self._by_id.get(request_id)

    def finish(self, *sequences: Sequence) -> None:
        """Ends running or waiting sequences, and releases their memory."""
        for sequence in sequences:
            self._by_id.pop(sequence.request_id, None)
            if sequence.slot >= 0:
                self._stop(sequence)
        if len(self._waiting) + len(self._running) > len(self._by_id):
            self._waiting = deque(s for s in self._waiting if s.request_id in self._by_id)

    def schedule(self) -> list[Chunk]:
        """Returns the chunks of the next step. The list is empty only if no sequence runs or waits."""
        # Preempts before anything is chosen, because it removes running sequences.
        while not self.cache.reserve_next_tokens():
            self._preempt(self._running[-1])
        decoding = [s for s in self._running if s.num_new_tokens == 1]
        prefilling = [s for s in self._running if s.num_new_tokens > 1]
        step = _Step(self._max_num_batched_tokens)
        # Decoding sequences come before all prompts, so that a long prompt takes no token of theirs.
        for sequence in decoding:
            step.add(sequence)
        prompts = [*prefilling, *islice(self._waiting, self.cache.num_free_slots)]
        if self._pace is not None and prompts:
            step.limit_prompts(self._pace.max_prompt_tokens(len(decoding), [s.num_tokens for s in prompts]))
        # Prompts that have begun precede new ones, because they hold memory already.
        for sequence in prefilling:
            step.add(sequence)
        self._admit(step)
        return step.chunks

    def reset_prefix_cache(self, *, interrupts: bool) -> bool:
        """Empties the prefix cache, or returns False if sequences run and `interrupts` is false.

        With `interrupts`, running sequences are stopped, and computed again later.
        """
        if self._running and not interrupts:
            return False
        for sequence in reversed(self._running.copy()):
            self._preempt(sequence)
        self.cache.forget_prefixes()
        return True

    def measured(self, chunks: list[Chunk]) -> AbstractContextManager[None]:
        """Measures how long the chunks take in the block. The limits of later steps depend on this time."""
        return self._pace.measured(chunks) if self._pace is not None else nullcontext()

    def _admit(self, step: "_Step") -> None:
        """Starts waiting sequences until slots, memory or the step's limits are used up.

        If a request has `n` > 1, its first sequence computes the prompt. The other sequences wait, and
        reuse the prompt a step later.
        """
        held_back: list[Sequence] = []
        while self._waiting and not step.is_full and self.cache.can_admit(self._waiting[0]):
            sequence = self._waiting.popleft()
            if self._computes_prompt_of(sequence):
                held_back.append(sequence)
                continue
            self._start(sequence)
            if not step.add(sequence):
                break
        self._waiting.extendleft(reversed(held_back))

    def _computes_prompt_of(self, sequence: Sequence) -> bool:
        """Whether a running sequence still computes the same prompt, whose result can be shared later."""
        length = self.cache.max_prefix(sequence)
        return any(s.num_computed_tokens < length and s.has_prompt_of(sequence) for s in self._running)

    def _start(self, sequence: Sequence) -> None:
        self.cache.admit(sequence)
        self._running.append(sequence)
        if sequence.num_preemptions == 0:
            sequence.admitted_s = monotonic()
            sequence.num_cached_tokens = sequence.num_computed_tokens

    def _stop(self, sequence: Sequence) -> None:
        self.cache.release(sequence)
        self._running.remove(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        self._stop(sequence)
        sequence.restart()
        self.num_preemptions += 1
        self._waiting.appendleft(sequence)


class _Step:
    """Collects a step's chunks within the step's limits: decoding sequences first, then prompts."""

    def __init__(self, max_tokens: int) -> None:
        self.chunks: list[Chunk] = []
        self._num_left = max_tokens
        self._num_prompt_tokens_left = max_tokens

    @property
    def is_full(self) -> bool:
        """Whether no further prompt can begin."""
        return min(self._num_left, self._num_prompt_tokens_left) <= 0

    def limit_prompts(self, max_tokens: int) -> None:
        """Limits the step's prompt tokens. A prompt is computed whole if at least half of it fits."""
        self._num_prompt_tokens_left = max_tokens

    def add(self, sequence: Sequence) -> bool:
        """Adds as many tokens of the sequence as the limits allow. Returns False if they allow none.

        Splits a prompt only if the step computes no other prompt, because a prompt that is computed in one
        piece is rounded as in `model.generate`.
        """
        num_tokens = min(sequence.num_new_tokens, self._num_left)
        chunk = Chunk(sequence, num_tokens)
        if not chunk.is_decode and num_tokens > 2 * self._num_prompt_tokens_left:
            chunk = Chunk(sequence, self._num_prompt_tokens_left)
        if chunk.num_tokens <= 0:
            return False
        if not chunk.is_last and any(not each.is_decode for each in self.chunks):
            return False
        self.chunks.append(chunk)
        self._num_left -= chunk.num_tokens
        if not chunk.is_decode:
            self._num_prompt_tokens_left -= chunk.num_tokens
        return True
