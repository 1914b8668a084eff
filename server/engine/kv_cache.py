"""The KV cache: one contiguous slot per running sequence, so that attention reads it without a gather.

On a CPU the memory is reserved, not committed: the kernel commits a page when a token is written to it and
frees it when the slot is released. The cache manager's budget in tokens limits the committed memory.
"""

import mmap
from contextlib import suppress
from dataclasses import dataclass

import torch

from server.errors import EngineMemoryError, EngineStartError

_MAP_NORESERVE = 0x4000
"""Linux: reserve address space without counting it against the commit limit (mmap(2))."""


@dataclass(frozen=True)
class LayerShape:
    """Sizes of the keys and values that one attention layer stores per token."""

    num_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def num_elements(self) -> int:
        """Elements of keys and values per token."""
        return self.num_kv_heads * (self.key_dim + self.value_dim)


class KVCache:
    """Keys and values of all layers, shape [num_slots * slot_len, num_kv_heads, dim] each.

    Used in the engine process; not thread-safe.
    """

    def __init__(
        self, shapes: dict[int, LayerShape], *, num_slots: int, slot_len: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_slots = num_slots
        self.slot_len = slot_len
        self._shapes = shapes
        self._memory = _Memory(
            num_slots * slot_len * sum(s.num_elements for s in shapes.values()), dtype=dtype, device=device
        )
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        for layer, shape in shapes.items():
            self.keys[layer] = self._take(shape.num_kv_heads, shape.key_dim)
            self.values[layer] = self._take(shape.num_kv_heads, shape.value_dim)

    def store(self, layer: int, index: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Writes keys and values, shape [num_tokens, num_kv_heads, dim], at the flat positions `index`."""
        self.keys[layer].index_copy_(0, index, keys)
        self.values[layer].index_copy_(0, index, values)

    def read(self, layer: int, first: int, last: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of slots first..last-1, shape [slots, num_kv_heads, length, dim], without a copy."""
        shape = self._shapes[layer]
        keys = self.keys[layer].view(self.num_slots, self.slot_len, shape.num_kv_heads, shape.key_dim)
        values = self.values[layer].view(self.num_slots, self.slot_len, shape.num_kv_heads, shape.value_dim)
        return keys[first:last, :length].transpose(1, 2), values[first:last, :length].transpose(1, 2)

    def snapshot(self, slot: int, length: int) -> list[torch.Tensor]:
        """A copy of the first `length` tokens of a slot, for `restore`."""
        first = slot * self.slot_len
        return [part[first : first + length].clone() for part in self._parts()]

    def restore(self, slot: int, parts: list[torch.Tensor], length: int) -> None:
        """Copies the first `length` tokens of a snapshot into a slot."""
        first = slot * self.slot_len
        for part, saved in zip(self._parts(), parts, strict=True):
            part[first : first + length].copy_(saved[:length])

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of one slot to another."""
        a, b = source * self.slot_len, target * self.slot_len
        for part in self._parts():
            part[b : b + length].copy_(part[a : a + length])

    def release(self, slot: int, length: int) -> None:
        """Clears the first `length` tokens of a slot; on a CPU their pages go back to the system."""
        first = slot * self.slot_len
        for part in self._parts():
            self._memory.release(part[first : first + length])

    def _parts(self) -> list[torch.Tensor]:
        return [*self.keys.values(), *self.values.values()]

    def _take(self, num_kv_heads: int, dim: int) -> torch.Tensor:
        num_tokens = self.num_slots * self.slot_len
        return self._memory.take(num_tokens * num_kv_heads * dim).view(num_tokens, num_kv_heads, dim)


class _Memory:
    """A block of memory for several tensors: anonymous pages on a CPU, a plain tensor elsewhere."""

    def __init__(self, num_elements: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self._pages: mmap.mmap | None = None
        if device.type == "cpu":
            self._pages = _reserve(num_elements * dtype.itemsize)
            # A huge page would commit 2 MiB for a token of 384 bytes. Kernels without them raise OSError.
            with suppress(OSError):
                self._pages.madvise(mmap.MADV_NOHUGEPAGE)
            self._block = torch.frombuffer(self._pages, dtype=dtype)
        else:
            self._block = _allocate(num_elements, dtype=dtype, device=device)
        self._next = 0

    def take(self, num_elements: int) -> torch.Tensor:
        part = self._block[self._next : self._next + num_elements]
        self._next += num_elements
        return part

    def release(self, part: torch.Tensor) -> None:
        """Clears the part: attention multiplies masked values too, and NaN times 0 is NaN."""
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


def _reserve(num_bytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    except (OSError, OverflowError) as err:
        raise EngineStartError(
            f"cannot reserve {num_bytes / (1 << 30):.1f} GiB of address space for the KV cache ({err}): "
            "lower --max-num-seqs or --max-model-len"
        ) from err
