"""Caches processed images, so that the same image is not decoded and resized again."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from server.terms.types import TensorData


@dataclass(frozen=True)
class ProcessedImages:
    """One image, or several that were processed together, ready for the model."""

    tensors: dict[str, TensorData]
    placeholders: tuple[str, ...]
    """For each image, the text that replaces its token in the prompt."""

    @property
    def num_bytes(self) -> int:
        return sum(len(tensor.data) for tensor in self.tensors.values()) + sum(map(len, self.placeholders))


class ProcessorCache:
    """Evicts the least recently used images beyond `max_bytes`.

    Every method runs in the renderer's image thread; the counters may be read from any thread.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, ProcessedImages] = OrderedDict()
        self.num_bytes = 0
        self.num_queries = 0
        """Images looked up since start-up."""
        self.num_hits = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: Hashable) -> ProcessedImages | None:
        """The entry with this key, which becomes the most recently used."""
        self.num_queries += 1
        found = self._entries.get(key)
        if found is not None:
            self.num_hits += 1
            self._entries.move_to_end(key)
        return found

    def put(self, key: Hashable, images: ProcessedImages) -> None:
        """Stores the images, unless they are larger than the whole cache."""
        if key in self._entries or images.num_bytes > self._max_bytes:
            return
        while self.num_bytes + images.num_bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.num_bytes -= oldest.num_bytes
        self._entries[key] = images
        self.num_bytes += images.num_bytes

    def clear(self) -> None:
        """Drops all images; requests keep those that they hold."""
        self._entries.clear()
        self.num_bytes = 0
