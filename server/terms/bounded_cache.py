"""A cache of limited size. Above its limits, it drops the values that were added or used longest ago."""

from collections import OrderedDict
from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """A cache for use by one thread."""

    def __init__(self, max_bytes: int, size_of: Callable[[V], int], *, max_entries: float = inf) -> None:
        """`size_of` returns the size of a value in bytes. This size must not change."""
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._max_entries = max_entries
        self._entries: OrderedDict[K, V] = OrderedDict()
        self.num_bytes = 0
        """The bytes of all values together."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """Returns the value of a key, or None if the value was never added or was dropped."""
        return self._entries.get(key)

    def use(self, key: K) -> V | None:
        """Like `get`, but also marks the value as used last."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        """Adds a value, unless it is larger than the cache or its key is taken."""
        num_bytes = self._size_of(value)
        if num_bytes > self._max_bytes or key in self._entries:
            return
        self._entries[key] = value
        self.num_bytes += num_bytes
        while len(self._entries) > self._max_entries or self.num_bytes > self._max_bytes:
            self.pop(next(iter(self._entries)))

    def pop(self, key: K) -> V | None:
        """Drops a value and returns it. Returns None if the key has no value."""
        found = self._entries.pop(key, None)
        self.num_bytes -= 0 if found is None else self._size_of(found)
        return found

    def clear(self) -> None:
        self._entries.clear()
        self.num_bytes = 0
