"""Keeps keys and values of ended sequences, so that prompts with the same beginning reuse them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from server.engine.memory.kv_cache import Slots
from server.engine.sequence import Sequence

_BLOCK_TOKENS = 16
"""Matches end on a multiple of this, vLLM's block size. Otherwise a client could guess the prompts of others
one token at a time."""
_MIN_TOKENS = 2 * _BLOCK_TOKENS
"""Computing a shorter prefix is cheaper than caching it."""

TokenArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CachedPrefix:
    """Tokens, and what `keep` of the slots returned for them."""

    token_ids: TokenArray
    kept: Any


class PrefixMatch(NamedTuple):
    """A cached beginning of a prompt."""

    length: int
    source: Any
    """Where it is: a running sequence's slot, or what an entry keeps."""


class PrefixCache:
    """Evicts the least recently used entry first, of those that running sequences do not hold.

    Used on the engine's thread.
    """

    def __init__(self, slots: Slots, *, max_tokens: int) -> None:
        """At most `max_tokens` are in entries alone; tokens of running sequences do not count."""
        self._slots = slots
        self._max_tokens = max_tokens
        self._entries: list[CachedPrefix] = []
        """The least recently used first."""

    @property
    def num_tokens(self) -> int:
        """Tokens that no running sequence holds."""
        return self._slots.num_kept_tokens

    def max_match(self, sequence: Sequence) -> int:
        """Most tokens of the sequence that `match` could find."""
        length = _whole_blocks(sequence.num_tokens - 1)
        return length if length >= _MIN_TOKENS and sequence.can_reuse_prefix else 0

    def match(self, sequence: Sequence, running: Iterable[Sequence]) -> PrefixMatch | None:
        """Finds the longest cached beginning of the sequence's prompt, in an ended sequence or a running one.

        Whole blocks only, and never the last token, which has to be computed for its logits. An entry that is
        found becomes the most recently used.
        """
        wanted = sequence.cache_ids(sequence.num_tokens - 1)
        best: CachedPrefix | None = None
        slot: int | None = None
        length = _MIN_TOKENS - 1
        for entry in self._entries:
            if _have_same_prefix(wanted, entry.token_ids, length + 1):
                length = common_prefix(wanted, entry.token_ids)
                best = entry
        for other in running:
            if other.num_computed_tokens <= length:
                continue
            if np.array_equal(other.cache_ids(_MIN_TOKENS), wanted[:_MIN_TOKENS]):
                computed = other.cache_ids(other.num_computed_tokens)
                if _have_same_prefix(wanted, computed, length + 1):
                    length = common_prefix(wanted, computed)
                    slot = other.slot
        length = _whole_blocks(length)
        if slot is not None:
            return PrefixMatch(length, slot)
        if best is None:
            return None
        self._entries.remove(best)
        self._entries.append(best)
        return PrefixMatch(length, best.kept)

    def wants(self, token_ids: TokenArray) -> bool:
        """Whether to `put` these tokens: neither too short nor too long, and not in the cache yet."""
        if not _MIN_TOKENS <= len(token_ids) <= self._max_tokens:
            return False
        return not any(_have_same_prefix(token_ids, e.token_ids, len(token_ids)) for e in self._entries)

    def put(self, token_ids: TokenArray, kept: Any) -> None:
        """Adds an ended sequence and drops the entries that it continues."""
        for entry in list(self._entries):
            if _have_same_prefix(token_ids, entry.token_ids, len(entry.token_ids)):
                self._drop(entry)
        self._entries.append(CachedPrefix(token_ids, kept))

    def shrink_to(self, max_tokens: int) -> None:
        """Drops entries until `max_tokens` or the cache's own maximum remain."""
        while self._entries and self.num_tokens > max(min(max_tokens, self._max_tokens), 0):
            self._drop(self._choose_evicted())

    def _choose_evicted(self) -> CachedPrefix:
        """The least recently used entry; if possible one that frees most of its tokens now."""
        return next((entry for entry in self._entries if not self._is_in_use(entry)), self._entries[0])

    def _is_in_use(self, entry: CachedPrefix) -> bool:
        """Whether running sequences hold most of its tokens."""
        num_tokens = len(entry.token_ids)
        return self._slots.count_running_tokens(entry.kept, num_tokens) > num_tokens / 2

    def _drop(self, entry: CachedPrefix) -> None:
        self._entries.remove(entry)
        self._slots.drop(entry.kept)


def common_prefix(a: TokenArray, b: TokenArray) -> int:
    """Number of leading tokens that are equal."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


def _whole_blocks(num_tokens: int) -> int:
    return num_tokens - num_tokens % _BLOCK_TOKENS


def _have_same_prefix(a: TokenArray, b: TokenArray, length: int) -> bool:
    """Whether both begin with the same `length` tokens; the last is compared first and rejects most pairs."""
    return min(len(a), len(b)) >= length and a[length - 1] == b[length - 1] and np.array_equal(a[:length], b[:length])
