"""The KV cache has one contiguous slot per running sequence, so that attention needs no gather.

On a CPU the memory is reserved, not committed. The kernel commits a page when a token is written to it. The
page is freed when no sequence and no cached prefix holds its tokens. The committed memory is limited by the
cache manager's budget in tokens.
"""

import logging
import mmap
from contextlib import suppress
from dataclasses import dataclass

import torch

from base.errors import EngineMemoryError
from server.engine.memory.memory_file import reserve_pages
from server.engine.memory.shared_slots import SharedSlots

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerShape:
    """The sizes of keys and values that one attention layer stores per token."""

    num_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def part_sizes(self) -> tuple[int, int]:
        """The elements per token of the keys, and of the values."""
        return self.num_kv_heads * self.key_dim, self.num_kv_heads * self.value_dim

    @property
    def num_elements(self) -> int:
        """The elements per token of keys and values together."""
        return sum(self.part_sizes)


class KVCache:
    """Keys and values of all layers, shape [num_slots * slot_len, num_kv_heads, dim] each.

    `slots` assigns this memory to sequences. Only one thread of the engine process uses the cache.
    """

    def __init__(
        self, shapes: dict[int, LayerShape], *, num_slots: int, slot_len: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """A slot has room for at least `slot_len` tokens."""
        part_sizes = [size for shape in shapes.values() for size in shape.part_sizes]
        self.slots: SharedSlots | CopiedSlots
        shared = _share_slots(num_slots, slot_len, [n * dtype.itemsize for n in part_sizes], device)
        if shared is not None:
            self.slots = shared
            block = torch.frombuffer(shared.memory.pages, dtype=dtype)
        else:
            self.slots = copied = CopiedSlots(
                num_slots=num_slots, slot_len=slot_len, part_sizes=part_sizes, dtype=dtype, device=device
            )
            block = copied.block
        self.num_slots = num_slots
        self.slot_len = self.slots.slot_len
        self._shapes = shapes
        num_tokens = num_slots * self.slot_len
        parts = iter(torch.split(block, [num_tokens * size for size in part_sizes]))
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        for layer, shape in shapes.items():
            self.keys[layer] = next(parts).view(num_tokens, shape.num_kv_heads, shape.key_dim)
            self.values[layer] = next(parts).view(num_tokens, shape.num_kv_heads, shape.value_dim)

    def store(self, layer: int, index: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Writes keys and values [num_tokens, num_kv_heads, dim] to the flat positions `index`."""
        self.keys[layer].index_copy_(0, index, keys)
        self.values[layer].index_copy_(0, index, values)

    def read(self, layer: int, first: int, last: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns views of slots first..last-1, shape [slots, num_kv_heads, length, dim], without copying."""
        shape = self._shapes[layer]
        keys = self.keys[layer].view(self.num_slots, self.slot_len, shape.num_kv_heads, shape.key_dim)
        values = self.values[layer].view(self.num_slots, self.slot_len, shape.num_kv_heads, shape.value_dim)
        keys, values = keys[first:last, :length], values[first:last, :length]
        return keys.transpose(1, 2), values.transpose(1, 2)


def _share_slots(num_slots: int, slot_len: int, token_bytes: list[int], device: torch.device) -> SharedSlots | None:
    if device.type != "cpu":
        return None
    try:
        return SharedSlots(num_slots=num_slots, slot_len=slot_len, token_bytes=token_bytes)
    except OSError as err:
        logger.warning("prefixes are copied, because the system permits no memory file: %s", err)
        return None


class CopiedSlots:
    """Has the interface of `SharedSlots`, but each slot and each kept prefix has memory of its own."""

    num_shared_tokens = 0
    has_too_many_mappings = False

    def __init__(
        self, *, num_slots: int, slot_len: int, part_sizes: list[int], dtype: torch.dtype, device: torch.device
    ) -> None:
        """Allocates the memory. On a CPU, the system commits a page when it is first written.

        `part_sizes` are the elements per token of each part. A part is one layer's keys or values.
        """
        self.slot_len = slot_len
        self.num_cached_tokens = 0
        self._pages: mmap.mmap | None = None
        num_elements = num_slots * slot_len * sum(part_sizes)
        if device.type == "cpu":
            self._pages = reserve_pages(num_elements * dtype.itemsize)
            # A huge page would commit 2 MiB for a token of 384 bytes. Kernels without them raise OSError.
            with suppress(OSError):
                self._pages.madvise(mmap.MADV_NOHUGEPAGE)
            self.block = torch.frombuffer(self._pages, dtype=dtype)
        else:
            self.block = _allocate(num_elements, dtype=dtype, device=device)
        parts = torch.split(self.block, [num_slots * slot_len * n for n in part_sizes])
        self._parts = [part.view(num_slots, slot_len, -1) for part in parts]

    def open(self, slot: int, source: int | list[torch.Tensor] | None = None, length: int = 0) -> None:
        if source is None:
            return
        saved = [part[source] for part in self._parts] if isinstance(source, int) else source
        for part, beginning in zip(self._parts, saved, strict=True):
            part[slot, :length].copy_(beginning[:length])

    def close(self, slot: int, length: int) -> None:
        for part in self._parts:
            self._clear(part[slot, :length])

    def hide_closed(self, slots: range) -> None:
        pass  # closed slots hold zeros, and reading these commits no memory

    def keep(self, slot: int, length: int) -> list[torch.Tensor]:
        cached = [part[slot, :length].clone() for part in self._parts]
        self.num_cached_tokens += length
        return cached

    def drop(self, cached: list[torch.Tensor]) -> None:
        self.num_cached_tokens -= len(cached[0])

    def count_running_tokens(self, source: int | list[torch.Tensor], length: int) -> int:
        return 0

    def count_common_tokens(self, slots: list[int]) -> int:
        return 0

    def _clear(self, part: torch.Tensor) -> None:
        """Writes zeros. Attention multiplies masked values by 0, and a NaN times 0 would still be NaN."""
        if self._pages is None:
            part.zero_()
            return
        flat = part.view(-1)
        first = part.storage_offset() * part.element_size()
        begin = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (first + flat.numel() * flat.element_size()) // mmap.PAGESIZE * mmap.PAGESIZE
        if end <= begin:
            flat.zero_()
            return
        flat[: (begin - first) // flat.element_size()].zero_()
        flat[(end - first) // flat.element_size() :].zero_()
        self._pages.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def _allocate(num_elements: int, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    try:
        return torch.zeros(num_elements, dtype=dtype, device=device)
    except torch.OutOfMemoryError as err:
        raise EngineMemoryError(
            f"the GPU has no {num_elements * dtype.itemsize / (1 << 30):.3g} GiB in one piece for the KV cache: "
            "lower --gpu-memory-utilization or --kv-cache-memory-bytes"
        ) from err
