"""A cache of limited size. Above its limits, it drops the values that were added or used longest ago."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """A cache for use by one thread. Any thread may read its numbers."""

    def __init__(self, max_bytes: int, size_of: Callable[[V], int]) -> None:
        """`size_of` returns the size of a value in bytes. This size must not change."""
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._entries: OrderedDict[K, V] = OrderedDict()
        self.num_bytes = 0
        """The bytes of all values together."""
        self.num_queries = 0
        self.num_hits = 0

    def __len__(self) -> int:
        return len(self._entries)

    def use(self, key: K) -> V | None:
        """Returns a key's value and marks it as used last. None if it was never added or was dropped."""
        self.num_queries += 1
        if key in self._entries:
            self.num_hits += 1
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        """Adds a value, unless it is larger than the cache or its key is taken."""
        num_bytes = self._size_of(value)
        if num_bytes > self._max_bytes or key in self._entries:
            return
        self._entries[key] = value
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self.num_bytes -= self._size_of(dropped)

    def clear(self) -> None:
        self._entries.clear()
        self.num_bytes = 0
