"""Keeps imported objects excluded from garbage collection while vLLM captures CUDA graphs.

The forkserver has frozen its objects, so that a collection in a fork visits none of them. vLLM freezes the
heap around each capture and unfreezes it afterwards. From then on, a collection visits a million objects: it
takes a second, and copies the pages that forks share. At the end of its start vLLM freezes the heap for good.
"""

from typing import Final

from startup.ground.hooks.hook import Hook, Name, Text
from startup.imports.finder import after_import, place_variant

_CAPTURE: Final = Name("vllm.utils.gc_utils", "freeze_gc_for_cudagraph_capture", ())
FROZEN_HEAP: Final = Hook(
    "frozen heap",
    does="keeps objects that exist when CUDA graphs are captured excluded from garbage collection",
    without="after a capture of graphs, each collection of a start visits all imported objects",
    needs=(_CAPTURE, Text((_CAPTURE.module,), r"gc\.unfreeze\(\)\n +gc\.collect\(\)", "gc.unfreeze() after a capture")),
    since=(0, 32),
)


def keep_heap_frozen() -> None:
    """From now on, `gc.unfreeze()` of that module has no effect, in this process and its forks."""
    if FROZEN_HEAP.applies:
        after_import(_CAPTURE.module, lambda module: place_variant(module, "gc", unfreeze=lambda gc: None), FROZEN_HEAP)
