"""Keeps keys and values of ended sequences. Prompts that begin with the same tokens reuse them."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from server.engine.memory.kv_cache import CopiedSlots
from server.engine.memory.shared_slots import SharedSlots
from server.engine.sequence import Sequence

logger = logging.getLogger(__name__)

_BLOCK_TOKENS = 16
"""A match ends on a multiple of this number, vLLM's block size. Otherwise a client could guess the prompts of
others one token at a time."""
_MIN_TOKENS = 2 * _BLOCK_TOKENS
"""The fewest tokens of a cached prefix. Computing fewer tokens is cheaper than caching them."""

TokenArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CachedPrefix:
    """The tokens of an ended sequence, and the result of `SharedSlots.keep` for them."""

    token_ids: TokenArray
    cached: Any


@dataclass(frozen=True)
class PrefixMatch:
    """The cached beginning of a prompt."""

    length: int
    source: Any
    """A running sequence's slot, or an entry's kept tokens."""


class PrefixCache:
    """Evicts the least recently used entry, if possible an entry that running sequences do not use.

    Running sequences use an entry if they hold more than half of its tokens. One thread uses the cache.
    """

    def __init__(self, slots: SharedSlots | CopiedSlots, *, max_tokens: int) -> None:
        """`max_tokens` limits the tokens that only entries hold. Tokens of running sequences do not count."""
        self._slots = slots
        self._max_tokens = max_tokens
        self._entries: list[CachedPrefix] = []
        """The least recently used entry is first."""

    @property
    def num_tokens(self) -> int:
        """The number of cached tokens that no running sequence holds."""
        return self._slots.num_cached_tokens

    def max_match(self, sequence: Sequence) -> int:
        """The largest number of the sequence's tokens that `match` could find."""
        length = _whole_blocks(sequence.num_tokens - 1)
        return length if length >= _MIN_TOKENS and sequence.can_reuse_prefix else 0

    def match(self, sequence: Sequence, running: Iterable[Sequence]) -> PrefixMatch | None:
        """Finds the ended or running sequence that shares the longest beginning with `sequence`.

        Only whole blocks match. The last token never matches, because its logits must be computed. The
        matching entry becomes the most recently used entry.
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
            if other.is_private or other.num_computed_tokens <= length:
                continue
            # Few running sequences begin alike, and `cache_ids` copies: the beginnings are compared first.
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
        return PrefixMatch(length, best.cached)

    def keep(self, sequence: Sequence) -> None:
        """Adds the computed tokens of a sequence that ends, if `wants` accepts them."""
        token_ids = sequence.cache_ids(sequence.num_computed_tokens)
        if sequence.is_private or not self.wants(token_ids):
            return
        try:
            self.put(token_ids, self._slots.keep(sequence.slot, len(token_ids)))
        except torch.OutOfMemoryError:
            logger.warning("the GPU has no room for a prompt of %d tokens: the prefix cache is emptied", len(token_ids))
            self.shrink_to(0)

    def wants(self, token_ids: TokenArray) -> bool:
        """Whether to `put` these tokens. Rejects cached tokens, and too few or too many tokens."""
        if not _MIN_TOKENS <= len(token_ids) <= self._max_tokens:
            return False
        return not any(_have_same_prefix(token_ids, e.token_ids, len(token_ids)) for e in self._entries)

    def put(self, token_ids: TokenArray, cached: Any) -> None:
        """Adds an ended sequence. Drops older entries that are a beginning of this sequence."""
        for entry in self._entries.copy():
            if _have_same_prefix(token_ids, entry.token_ids, len(entry.token_ids)):
                self._drop(entry)
        self._entries.append(CachedPrefix(token_ids, cached))

    def shrink_to(self, max_tokens: int) -> None:
        """Drops entries until at most `max_tokens` remain, or the cache's own maximum if that is lower."""
        limit = max(min(max_tokens, self._max_tokens), 0)
        while self._entries and self.num_tokens > limit:
            # Dropping an entry that running sequences use frees little memory.
            unused = (entry for entry in self._entries if not self._is_in_use(entry))
            self._drop(next(unused, self._entries[0]))

    def _is_in_use(self, entry: CachedPrefix) -> bool:
        """Whether running sequences hold most of the entry's tokens."""
        num_tokens = len(entry.token_ids)
        return self._slots.count_running_tokens(entry.cached, num_tokens) > num_tokens / 2

    def _drop(self, entry: CachedPrefix) -> None:
        self._entries.remove(entry)
        self._slots.drop(entry.cached)


def common_prefix(a: TokenArray, b: TokenArray) -> int:
    """The number of leading tokens that are equal."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


def _whole_blocks(num_tokens: int) -> int:
    return num_tokens - num_tokens % _BLOCK_TOKENS


def _have_same_prefix(a: TokenArray, b: TokenArray, length: int) -> bool:
    """Whether both begin with the same `length` tokens. Compares the last token first, to be fast."""
    if min(len(a), len(b)) < length or a[length - 1] != b[length - 1]:
        return False
    return np.array_equal(a[:length], b[:length])
