"""Keeps the keys and values of ended sequences, so that a prompt that begins alike is not computed again."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from server.engine.sequence import Sequence

_MIN_TOKENS = 32
"""Shorter prefixes are computed faster than they are looked after."""

TokenArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CachedPrefix:
    """Tokens and their keys and values, as `KVCache.snapshot` gives them."""

    token_ids: TokenArray
    parts: list[torch.Tensor]


@dataclass(frozen=True)
class PrefixMatch:
    """A cached beginning of a prompt: in an entry of the cache or in a running sequence's slot."""

    length: int
    entry_id: int | None = None
    slot: int | None = None


class PrefixCache:
    """Least recently used first to go; bounded by `max_tokens`. Lives on the engine's thread."""

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
        """Where the longest cached beginning of the sequence's prompt is, in an ended sequence or a running one.

        The last token is never counted: it has to be computed for its logits. What a preempted sequence
        finds again is no query of its own.
        """
        wanted = sequence.cache_ids(sequence.num_tokens - 1)
        best: PrefixMatch | None = None
        length = _MIN_TOKENS - 1
        for entry_id, entry in self._entries.items():
            if _begin_alike(wanted, entry.token_ids, length + 1):
                length = common_prefix(wanted, entry.token_ids)
                best = PrefixMatch(length, entry_id=entry_id)
        for other in running:
            if other.is_private or other.num_computed_tokens <= length:
                continue
            if np.array_equal(other.cache_ids(_MIN_TOKENS), wanted[:_MIN_TOKENS]):
                computed = other.cache_ids(other.num_computed_tokens)
                if _begin_alike(wanted, computed, length + 1):
                    length = common_prefix(wanted, computed)
                    best = PrefixMatch(length, slot=other.slot)
        if sequence.num_preemptions == 0:
            self.num_queried_tokens += sequence.num_tokens
            self.num_hit_tokens += best.length if best is not None else 0
        return best

    def take(self, entry_id: int) -> list[torch.Tensor]:
        """An entry's keys and values, which stay in the cache as the most recently used."""
        self._entries.move_to_end(entry_id)
        return self._entries[entry_id].parts

    def wants(self, token_ids: TokenArray) -> bool:
        """Whether `put` would keep these tokens: not too short or long, and not known already."""
        if not _MIN_TOKENS <= len(token_ids) <= self._max_tokens:
            return False
        return not any(_begin_alike(token_ids, e.token_ids, len(token_ids)) for e in self._entries.values())

    def put(self, token_ids: TokenArray, parts: list[torch.Tensor]) -> None:
        """Keeps an ended sequence; what it continues is dropped."""
        for entry_id, entry in list(self._entries.items()):
            if _begin_alike(token_ids, entry.token_ids, len(entry.token_ids)):
                self._drop(entry_id)
        self.shrink_to(self._max_tokens - len(token_ids))
        self._entries[self._next_id] = CachedPrefix(token_ids, parts)
        self._next_id += 1
        self.num_tokens += len(token_ids)

    def shrink_to(self, max_tokens: int) -> None:
        """Drops the least recently used entries until at most `max_tokens` are held."""
        while self._entries and self.num_tokens > max(max_tokens, 0):
            self._drop(next(iter(self._entries)))

    def _drop(self, entry_id: int) -> None:
        self.num_tokens -= len(self._entries.pop(entry_id).token_ids)


def common_prefix(a: TokenArray, b: TokenArray) -> int:
    """Number of leading tokens that are equal."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


def _begin_alike(a: TokenArray, b: TokenArray, length: int) -> bool:
    """Whether both begin with the same `length` tokens; the last of them tells most pairs apart at once."""
    return min(len(a), len(b)) >= length and a[length - 1] == b[length - 1] and np.array_equal(a[:length], b[:length])
