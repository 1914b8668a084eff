"""Decides what each step computes: running sequences first, then prompts in order of arrival, in chunks.

A sequence waits until the cache manager has a slot and memory for it. When running sequences outgrow the
budget, the youngest is preempted: it goes back to the queue and is computed again later.
"""

from collections import deque
from time import monotonic

from server.engine.batch import Chunk
from server.engine.cache_manager import CacheManager
from server.engine.sequence import Sequence, SequenceState


class Scheduler:
    """Owns the queue; every method runs on the engine's thread."""

    def __init__(self, cache: CacheManager, *, max_num_batched_tokens: int, max_loras: int = 1) -> None:
        """Both limit a step; `max_loras` is the number of different adapters."""
        self._cache = cache
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_loras = max_loras
        self._waiting: deque[Sequence] = deque()
        self._by_id: dict[str, Sequence] = {}
        self.num_preemptions = 0
        self.is_admitting = True
        """Whether waiting sequences may start."""

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def running_adapters(self) -> set[int]:
        """The adapters of running sequences."""
        return {s.adapter_id for s in self._running if s.adapter_id}

    @property
    def waiting_adapters(self) -> set[int]:
        """The adapters of waiting sequences."""
        return {s.adapter_id for s in self._waiting if s.adapter_id}

    def add(self, sequence: Sequence) -> None:
        """Appends a new sequence to the queue."""
        self._waiting.append(sequence)
        self._by_id[sequence.request_id] = sequence

    def find(self, request_id: str) -> Sequence | None:
        """The sequence with this id; None once it has ended."""
        return self._by_id.get(request_id)

    def finish(self, sequence: Sequence) -> None:
        """Ends a sequence, running or waiting, and releases its memory."""
        self._by_id.pop(sequence.request_id, None)
        if sequence.state is SequenceState.RUNNING:
            self._cache.release(sequence)
        elif sequence.state is SequenceState.WAITING:
            self._waiting.remove(sequence)
        sequence.state = SequenceState.FINISHED

    def schedule(self) -> list[Chunk]:
        """The next step's chunks; empty only if no sequence runs or waits."""
        while not self._cache.reserve_next_tokens():
            self._preempt(self._running[-1])
        budget = self._max_num_batched_tokens
        chunks: list[Chunk] = []
        for sequence in sorted(self._running, key=lambda s: s.num_new_tokens > 1):
            budget -= _add_chunk(chunks, sequence, budget)
        self._admit(chunks, budget)
        return chunks

    @property
    def _running(self) -> list[Sequence]:
        return self._cache.holders

    def _admit(self, chunks: list[Chunk], budget: int) -> None:
        """Starts waiting sequences while slots, memory and the step's budget last.

        With `n` > 1 the first sequence computes the prompt; the others wait and copy it a step later.
        A sequence whose adapter would be one too many lets others pass.
        """
        if not self.is_admitting:
            return
        held_back: list[Sequence] = []
        adapters = self.running_adapters if self._waiting else set()
        while self._waiting and budget > 0 and self._cache.can_admit(self._waiting[0]):
            sequence = self._waiting.popleft()
            has_adapter = not sequence.adapter_id or sequence.adapter_id in adapters or len(adapters) < self._max_loras
            if not has_adapter or self._cache.is_computing_prompt_of(sequence):
                held_back.append(sequence)
                continue
            self._start(sequence)
            if sequence.adapter_id:
                adapters.add(sequence.adapter_id)
            num_tokens = _add_chunk(chunks, sequence, budget)
            if num_tokens == 0:
                break
            budget -= num_tokens
        self._waiting.extendleft(reversed(held_back))

    def _start(self, sequence: Sequence) -> None:
        self._cache.admit(sequence)
        sequence.state = SequenceState.RUNNING
        if sequence.num_preemptions == 0:
            sequence.admitted_s = monotonic()
            sequence.num_cached_tokens = sequence.num_computed_tokens

    def preempt_all(self) -> None:
        """Sends all running sequences back to the queue, in their order."""
        for sequence in list(reversed(self._running)):
            self._preempt(sequence)

    @property
    def sequences(self) -> list[Sequence]:
        """All sequences that have not ended."""
        return list(self._by_id.values())

    def _preempt(self, sequence: Sequence) -> None:
        self._cache.release(sequence)
        sequence.restart()
        self.num_preemptions += 1
        self._waiting.appendleft(sequence)


def _add_chunk(chunks: list[Chunk], sequence: Sequence, budget: int) -> int:
    """Appends as much of the sequence as the budget allows; returns the number of tokens.

    Splits a prompt only if the step computes no other prompt: a prompt that is computed in one piece has the
    same rounding as in `model.generate`.
    """
    num_tokens = min(sequence.num_new_tokens, budget)
    if num_tokens < sequence.num_new_tokens and any(not c.is_decode for c in chunks):
        return 0
    if num_tokens:
        chunks.append(Chunk(sequence, num_tokens))
    return num_tokens
