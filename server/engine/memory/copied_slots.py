"""Slots that copy common beginnings: on a GPU, and on systems without memory files."""

import mmap
from contextlib import suppress

import torch

from server.engine.memory.memory_file import reserve_pages
from server.errors import EngineMemoryError


class CopiedSlots:
    """Implements `Slots`: each slot and each kept beginning has memory of its own."""

    num_shared_tokens = 0
    has_too_many_mappings = False

    def __init__(
        self, *, num_slots: int, slot_len: int, part_sizes: list[int], dtype: torch.dtype, device: torch.device
    ) -> None:
        """Allocates the memory; on a CPU, the system commits it as it is written.

        Args:
            part_sizes: elements per token of each part: one layer's keys or values.
        """
        self.slot_len = slot_len
        self.num_kept_tokens = 0
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
        pass  # they are zeros, and reading them commits no memory

    def keep(self, slot: int, length: int) -> list[torch.Tensor]:
        kept = [part[slot, :length].clone() for part in self._parts]
        self.num_kept_tokens += length
        return kept

    def drop(self, kept: list[torch.Tensor]) -> None:
        self.num_kept_tokens -= len(kept[0])

    def count_running_tokens(self, source: int | list[torch.Tensor], length: int) -> int:
        return 0

    def count_common_tokens(self, slots: list[int]) -> int:
        return 0

    def _clear(self, part: torch.Tensor) -> None:
        """Zeros, because attention multiplies masked values too, and NaN times 0 is NaN."""
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
