"""The memory of running sequences: slots of the KV cache, a budget in tokens, and the prefix cache.

This module imports neither the scheduler nor the runners, which call it.
"""

from server.engine.memory.kv_cache import KVCache
from server.engine.memory.prefix_cache import PrefixCache, PrefixMatch
from server.engine.sequence import Sequence


class CacheManager:
    """Assigns cache memory to sequences and releases it. Every method runs on the engine's thread.

    A sequence holds memory from `admit` to `release`. Cached prefixes use memory that sequences leave free.
    """

    def __init__(
        self,
        *,
        num_slots: int,
        max_tokens: int,
        kv_cache: KVCache | None = None,
        prefixes: PrefixCache | None = None,
    ) -> None:
        """`max_tokens` limits the tokens of running sequences and cached prefixes together.

        Without a `kv_cache`, each sequence keeps the model's own cache (`Sequence.model_cache`).
        """
        self.max_tokens = max_tokens
        self._kv_cache = kv_cache
        self._prefixes = prefixes
        self._free_slots = list(range(num_slots))
        self._holders: list[Sequence] = []
        """The admitted sequences, the oldest first."""
        self.num_queried_tokens = 0
        """The number of prompt tokens looked up in the prefix cache so far."""
        self.num_hit_tokens = 0

    @property
    def has_prefixes(self) -> bool:
        return self._prefixes is not None

    @property
    def num_free_slots(self) -> int:
        """The number of free slots, which is the most sequences that could be admitted."""
        return len(self._free_slots)

    @property
    def num_held_tokens(self) -> int:
        """The number of tokens of admitted sequences. Tokens that several sequences share count once."""
        num_shared = self._kv_cache.slots.num_shared_tokens if self._kv_cache is not None else 0
        return sum(s.num_tokens for s in self._holders) - num_shared

    def can_admit(self, sequence: Sequence) -> bool:
        """Whether there is a free slot, and free memory for the sequence and its next token."""
        if not self._free_slots:
            return False
        num_missing = sequence.num_tokens + 1 - self._num_free_tokens
        return num_missing <= 0 or num_missing <= self._count_running_tokens(sequence)

    def admit(self, sequence: Sequence) -> None:
        """Assigns a slot to the sequence, and fills the slot with the prompt's longest cached prefix."""
        sequence.slot = self._free_slots.pop(0)
        if self._kv_cache is not None:
            if self._kv_cache.slots.has_too_many_mappings:
                self.forget_prefixes()
            found = self._find_prefix(sequence)
            source, length = (None, 0) if found is None else (found.source, found.length)
            self._kv_cache.slots.open(sequence.slot, source, length)
            sequence.num_computed_tokens = length
            if self._prefixes is not None and sequence.can_reuse_prefix and sequence.num_preemptions == 0:
                self.num_queried_tokens += sequence.num_tokens
                self.num_hit_tokens += length
        self._holders.append(sequence)
        self._shrink_prefixes(self._num_free_tokens)

    def reserve_next_tokens(self) -> bool:
        """Reserves memory for one more token of each sequence. Drops cached prefixes if necessary.

        Returns False if the sequences need more than the whole budget. A single sequence always fits,
        because it has at most `max_tokens` - 1 tokens.
        """
        if self._num_free_tokens < 0:
            return False
        self._shrink_prefixes(self._num_free_tokens)
        return True

    def release(self, sequence: Sequence) -> None:
        """Releases the sequence's memory. Adds the sequence's computed tokens to the prefix cache."""
        sequence.model_cache = None
        if self._kv_cache is not None:
            if self._prefixes is not None:
                self._prefixes.keep(sequence)
            self._kv_cache.slots.close(sequence.slot, sequence.num_tokens)
        self._holders.remove(sequence)
        self._free_slots.append(sequence.slot)
        self._free_slots.sort()
        sequence.slot = -1
        self._shrink_prefixes(self._num_free_tokens)

    def forget_prefixes(self) -> None:
        self._shrink_prefixes(0)

    def max_prefix(self, sequence: Sequence) -> int:
        """The most tokens of the sequence that a cached prefix could provide."""
        return 0 if self._prefixes is None else self._prefixes.max_match(sequence)

    @property
    def _num_free_tokens(self) -> int:
        """The number of tokens left when each admitted sequence gets one more token."""
        return self.max_tokens - self.num_held_tokens - len(self._holders)

    def _find_prefix(self, sequence: Sequence) -> PrefixMatch | None:
        if self._prefixes is None or not sequence.can_reuse_prefix:
            return None
        return self._prefixes.match(sequence, self._holders)

    def _count_running_tokens(self, sequence: Sequence) -> int:
        """The number of the sequence's tokens that running sequences already hold."""
        found = self._find_prefix(sequence)
        if self._kv_cache is None or found is None:
            return 0
        return self._kv_cache.slots.count_running_tokens(found.source, found.length)

    def _shrink_prefixes(self, max_tokens: int) -> None:
        if self._prefixes is not None:
            self._prefixes.shrink_to(max_tokens)
