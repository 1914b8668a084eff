"""Decides what each step computes: running sequences first, then prompts in order of arrival, in chunks.

A sequence that finds no slot or no memory waits. When running sequences outgrow the cache, cached
prefixes go first, then the youngest sequence is put back to the queue and computed again later.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from server.engine.batch import Chunk
from server.engine.sequence import Sequence, SequenceState


@dataclass(frozen=True)
class Limits:
    """What bounds a step and the cache."""

    num_slots: int
    max_num_batched_tokens: int
    kv_cache_tokens: int
    """Tokens that running sequences and cached prefixes may hold together."""


class Scheduler:
    """Owns the queue and the slots; every method runs on the engine's thread.

    `on_release` is called when a running sequence loses its slot, before the slot is used again.
    `evict_cached` shrinks the prefix cache to a number of tokens. `can_share_prompt` says whether a sequence
    could take its prompt over from one that has computed it.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        on_admit: Callable[[Sequence], None],
        on_release: Callable[[Sequence], None],
        evict_cached: Callable[[int], None],
        can_share_prompt: Callable[[Sequence], bool],
    ) -> None:
        self._limits = limits
        self._on_admit = on_admit
        self._on_release = on_release
        self._evict_cached = evict_cached
        self._can_share_prompt = can_share_prompt
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._by_id: dict[str, Sequence] = {}
        self._free_slots = list(range(limits.num_slots))
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def running(self) -> list[Sequence]:
        return self._running

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_held_tokens(self) -> int:
        """Tokens that running sequences hold in the cache."""
        return sum(s.num_tokens for s in self._running)

    def add(self, sequence: Sequence) -> None:
        """Puts a new sequence at the end of the queue."""
        self._waiting.append(sequence)
        self._by_id[sequence.request_id] = sequence

    def find(self, request_id: str) -> Sequence | None:
        """The sequence with this id, unless it has ended."""
        return self._by_id.get(request_id)

    def finish(self, sequence: Sequence) -> None:
        """Ends a sequence, running or waiting, and frees its slot."""
        self._by_id.pop(sequence.request_id, None)
        if sequence.state is SequenceState.RUNNING:
            self._release(sequence)
        elif sequence.state is SequenceState.WAITING:
            self._waiting.remove(sequence)
        sequence.state = SequenceState.FINISHED

    def schedule(self) -> list[Chunk]:
        """The next step's chunks; empty only when nothing runs or waits."""
        self._make_room()
        budget = self._limits.max_num_batched_tokens
        chunks: list[Chunk] = []
        for sequence in sorted(self._running, key=lambda s: s.num_new_tokens > 1):
            budget -= _add_chunk(chunks, sequence, budget)
        self._admit(chunks, budget)
        return chunks

    def _admit(self, chunks: list[Chunk], budget: int) -> None:
        held_back: list[Sequence] = []
        while self._waiting and self._free_slots and budget > 0:
            sequence = self._waiting[0]
            if not self._fits(sequence):
                break
            self._waiting.popleft()
            if self._shares_prompt_being_computed(sequence):
                held_back.append(sequence)
                continue
            self._start(sequence)
            num_tokens = _add_chunk(chunks, sequence, budget)
            if num_tokens == 0:
                break
            budget -= num_tokens
        self._waiting.extendleft(reversed(held_back))

    def _start(self, sequence: Sequence) -> None:
        sequence.slot = self._free_slots.pop(0)
        sequence.state = SequenceState.RUNNING
        self._running.append(sequence)
        self._on_admit(sequence)

    def _fits(self, sequence: Sequence) -> bool:
        """Whether the sequence and its next token have room beside the running ones, at the prefix cache's expense."""
        room = self._limits.kv_cache_tokens - self.num_held_tokens - len(self._running)
        if sequence.num_tokens + 1 > room:
            return False
        self._evict_cached(room - sequence.num_tokens - 1)
        return True

    def _shares_prompt_being_computed(self, sequence: Sequence) -> bool:
        """With `n` > 1 the first sequence computes the prompt and the others take it from there a step later."""
        return self._can_share_prompt(sequence) and any(
            s.num_computed_tokens + 1 < s.num_prompt_tokens and s.has_prompt_of(sequence) for s in self._running
        )

    def _make_room(self) -> None:
        """Keeps room for one more token of each running sequence."""
        while len(self._running) > 1 and self.num_held_tokens + len(self._running) > self._limits.kv_cache_tokens:
            self._preempt(self._running[-1])
        self._evict_cached(self._limits.kv_cache_tokens - self.num_held_tokens - len(self._running))

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.state = SequenceState.WAITING
        sequence.num_computed_tokens = 0
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self._waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._on_release(sequence)
        self._running.remove(sequence)
        self._free_slots.append(sequence.slot)
        self._free_slots.sort()
        sequence.slot = -1


def _add_chunk(chunks: list[Chunk], sequence: Sequence, budget: int) -> int:
    """Appends what the budget allows of the sequence and returns its tokens.

    A prompt is split only where it does not share the step with another prompt: one that is computed in
    one piece rounds as `model.generate` does.
    """
    num_tokens = min(sequence.num_new_tokens, budget)
    if num_tokens < sequence.num_new_tokens and any(not c.is_decode for c in chunks):
        return 0
    if num_tokens:
        chunks.append(Chunk(sequence, num_tokens))
    return num_tokens
