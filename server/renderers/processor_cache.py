"""Keeps what the image processor made of pictures, so that the same picture is not decoded and resized again."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from server.types import TensorData


@dataclass(frozen=True)
class ProcessedPictures:
    """One picture, or several that were processed together, ready for the model."""

    tensors: dict[str, TensorData]
    placeholders: tuple[str, ...]
    """For each picture the text that takes the place of its token in the prompt."""

    @property
    def num_bytes(self) -> int:
        return sum(len(tensor.data) for tensor in self.tensors.values()) + sum(map(len, self.placeholders))


class ProcessorCache:
    """Least recently used first to go; bounded by `max_bytes`. Every method runs in the renderer's picture thread.

    The counters may be read from any thread.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, ProcessedPictures] = OrderedDict()
        self.num_bytes = 0
        self.num_queries = 0
        """Pictures looked up since start-up."""
        self.num_hits = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: Hashable) -> ProcessedPictures | None:
        """What is kept under this key, now the most recently used."""
        self.num_queries += 1
        found = self._entries.get(key)
        if found is not None:
            self.num_hits += 1
            self._entries.move_to_end(key)
        return found

    def put(self, key: Hashable, pictures: ProcessedPictures) -> None:
        """Keeps them, unless they are larger than the whole cache."""
        if key in self._entries or pictures.num_bytes > self._max_bytes:
            return
        for oldest in self._oldest():
            if self.num_bytes + pictures.num_bytes <= self._max_bytes:
                break
            self._drop(oldest)
        self._entries[key] = pictures
        self.num_bytes += pictures.num_bytes

    def clear(self) -> None:
        """Keeps nothing any more; requests hold on to what they were given."""
        self._entries.clear()
        self.num_bytes = 0

    def _oldest(self) -> Iterator[Hashable]:
        return iter(list(self._entries))

    def _drop(self, key: Hashable) -> None:
        self.num_bytes -= self._entries.pop(key).num_bytes
