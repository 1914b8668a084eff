"""Keeps keys and values of ended sequences, so that prompts with the same beginning reuse them."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from server.engine.sequence import Sequence

_MIN_TOKENS = 32
"""Computing a shorter prefix is cheaper than caching it."""

TokenArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CachedPrefix:
    """Tokens and their keys and values, as `KVCache.snapshot` returns them."""

    token_ids: TokenArray
    parts: list[torch.Tensor]


@dataclass(frozen=True)
class PrefixMatch:
    """A cached beginning of a prompt: in an entry of the cache or in a running sequence's slot."""

    length: int
    entry_id: int | None = None
    slot: int | None = None


class PrefixCache:
    """At most `max_tokens`; evicts the least recently used entry first. Used on the engine's thread."""

    def __init__(self, *, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._entries: OrderedDict[int, CachedPrefix] = OrderedDict()
        self._next_id = 0
        self.num_tokens = 0
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0

    def can_share(self, sequence: Sequence) -> bool:
        """Whether `match` could find a beginning of the sequence's prompt."""
        return sequence.num_tokens > _MIN_TOKENS and sequence.can_reuse_prefix

    def match(self, sequence: Sequence, running: Iterable[Sequence]) -> PrefixMatch | None:
        """Finds the longest cached beginning of the sequence's prompt, in an ended sequence or a running one.

        Never includes the last token, which has to be computed for its logits. The lookup of a preempted
        sequence does not count as a query.
        """
        wanted = sequence.cache_ids(sequence.num_tokens - 1)
        best: PrefixMatch | None = None
        length = _MIN_TOKENS - 1
        for entry_id, entry in self._entries.items():
            if _have_same_prefix(wanted, entry.token_ids, length + 1):
                length = common_prefix(wanted, entry.token_ids)
                best = PrefixMatch(length, entry_id=entry_id)
        for other in running:
            if other.is_private or other.num_computed_tokens <= length:
                continue
            if np.array_equal(other.cache_ids(_MIN_TOKENS), wanted[:_MIN_TOKENS]):
                computed = other.cache_ids(other.num_computed_tokens)
                if _have_same_prefix(wanted, computed, length + 1):
                    length = common_prefix(wanted, computed)
                    best = PrefixMatch(length, slot=other.slot)
        if sequence.num_preemptions == 0:
            self.num_queried_tokens += sequence.num_tokens
            self.num_hit_tokens += best.length if best is not None else 0
        return best

    def take(self, entry_id: int) -> list[torch.Tensor]:
        """An entry's keys and values; marks the entry as the most recently used."""
        self._entries.move_to_end(entry_id)
        return self._entries[entry_id].parts

    def wants(self, token_ids: TokenArray) -> bool:
        """Whether to `put` these tokens: neither too short nor too long, and not in the cache yet."""
        if not _MIN_TOKENS <= len(token_ids) <= self._max_tokens:
            return False
        return not any(_have_same_prefix(token_ids, e.token_ids, len(token_ids)) for e in self._entries.values())

    def put(self, token_ids: TokenArray, parts: list[torch.Tensor]) -> None:
        """Adds an ended sequence and drops the entries that it continues."""
        for entry_id, entry in list(self._entries.items()):
            if _have_same_prefix(token_ids, entry.token_ids, len(entry.token_ids)):
                self._drop(entry_id)
        self.shrink_to(self._max_tokens - len(token_ids))
        self._entries[self._next_id] = CachedPrefix(token_ids, parts)
        self._next_id += 1
        self.num_tokens += len(token_ids)

    def shrink_to(self, max_tokens: int) -> None:
        """Drops the least recently used entries until at most `max_tokens` remain."""
        while self._entries and self.num_tokens > max(max_tokens, 0):
            self._drop(next(iter(self._entries)))

    def _drop(self, entry_id: int) -> None:
        self.num_tokens -= len(self._entries.pop(entry_id).token_ids)


def common_prefix(a: TokenArray, b: TokenArray) -> int:
    """Number of leading tokens that are equal."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


def _have_same_prefix(a: TokenArray, b: TokenArray, length: int) -> bool:
    """Whether both begin with the same `length` tokens; the last is compared first and rejects most pairs."""
    return min(len(a), len(b)) >= length and a[length - 1] == b[length - 1] and np.array_equal(a[:length], b[:length])
