"""Populates the memory of vLLM's KV cache on CPU with several threads.

vLLM itself writes zeros over the whole cache in one thread before it serves, which takes 0.7 s for each GiB.
Writing zeros is not necessary, because the kernel's new pages contain zeros. Threads only populate the pages.
If twice the cache's size is free, the threads go on while vLLM serves. An early request then gets a page when
it writes to the page. Otherwise vLLM waits for the threads, so that a cache that does not fit ends the start
instead of a running server.
"""

import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from base.machine.libc import populate_pages
from base.machine.memory import available_bytes
from startup.hook import Hook, Text
from startup.imports.finder import alters, place_variant
from startup.processes.group_signals import start_thread

if TYPE_CHECKING:
    from torch import Tensor

_ALLOCATION: Final = "vllm.v1.worker.utils"
KV_CACHE: Final = Hook(
    "memory of the KV cache",
    does="on CPU, populates it with several threads, while vLLM already serves if memory is ample",
    without="one thread populates it before vLLM serves",
    gain_in=("CPU, eager, later",),
    needs=(Text(_ALLOCATION, r"= torch\.zeros\(buf_size, dtype=torch\.int8, device=device\)", "zeros for the cache"),),
    places={"forkserver", "template"},
)

_LEAST_BYTES: Final = 64 << 20
_PART_BYTES: Final = 2 << 20
"""Bytes that a thread populates at once. For this time, 1 to 2 ms, no other thread can map memory."""
_NICE: Final = 10
"""Added to the threads' nice value (setpriority(2)) if vLLM does not wait for them, to favour the start."""
_MOST_THREADS: Final = 8


@alters(KV_CACHE, _ALLOCATION)
def _replace_zeros(module: ModuleType) -> None:
    place_variant(module, "torch", zeros=_zeros)


def _zeros(torch: Any, size: Any, **options: Any) -> "Tensor":
    """Creates a KV cache on CPU with populated pages. Leaves any other tensor to torch."""
    is_cache = options.keys() == {"dtype", "device"} and isinstance(size, int) and size >= _LEAST_BYTES
    if is_cache and options["dtype"] is torch.int8 and torch.device(options["device"]).type == "cpu":
        with suppress(OSError, RuntimeError):  # too large, Linux before 5.14, or no threads: then torch tries
            return _map(torch, size)
    tensor: Tensor = torch.zeros(size, **options)
    return tensor


def _map(torch: Any, num_bytes: int) -> "Tensor":
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    cache: Tensor = torch.frombuffer(pages, dtype=torch.int8)
    begin = cache.data_ptr()
    memory = range(begin, begin + num_bytes)
    populate_pages(memory[:_PART_BYTES])
    distributed = torch.distributed
    _populate(memory, num_workers=distributed.get_world_size() if distributed.is_initialized() else 1)
    return cache


def _populate(memory: range, *, num_workers: int) -> None:
    """Populates the memory. Waits for the threads unless twice the caches of all workers fit into memory."""
    is_ample = available_bytes() > 2 * len(memory) * num_workers
    parts = iter([memory[i : i + _PART_BYTES] for i in range(0, len(memory), _PART_BYTES)])
    processors = os.sched_getaffinity(os.getppid())  # OpenMP has bound this thread to those on which it computes
    threads = [
        start_thread("kv-cache-pages", _populate_parts, parts, processors, _NICE if is_ample else 0)
        for _ in range(min(len(processors), _MOST_THREADS))
    ]
    for thread in threads if not is_ample else ():
        thread.join()


def _populate_parts(parts: Iterator[range], processors: set[int], nice: int) -> None:
    thread = threading.get_native_id()
    with suppress(OSError):  # vLLM's own writes get the pages, or raise the error
        os.sched_setaffinity(thread, processors)
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + nice)
        for part in parts:
            populate_pages(part)
