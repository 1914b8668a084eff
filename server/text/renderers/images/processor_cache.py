"""Caches processed images, so that the same image is not decoded and resized again."""

from collections.abc import Hashable
from dataclasses import dataclass

from server.terms.bounded_cache import BoundedCache
from server.terms.types import TensorData


@dataclass(frozen=True)
class ProcessedImages:
    """One processed image, or several that were processed together, as tensors for the model."""

    tensors: dict[str, TensorData]
    placeholders: tuple[str, ...]
    """For each image, the text that replaces its image token in the prompt."""

    @property
    def num_bytes(self) -> int:
        return sum(len(tensor.data) for tensor in self.tensors.values()) + sum(map(len, self.placeholders))


class ProcessorCache(BoundedCache[Hashable, ProcessedImages]):
    """Drops the least recently used images above `max_bytes`. Requests keep the images that they hold.

    Every method runs in the renderer's image thread. The counters may be read on any thread.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes, lambda images: images.num_bytes)
        self.num_queries = 0
        self.num_hits = 0

    def use(self, key: Hashable) -> ProcessedImages | None:
        found = super().use(key)
        self.num_queries += 1
        self.num_hits += found is not None
        return found
