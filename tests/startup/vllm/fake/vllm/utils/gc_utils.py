"""Freezes the heap around the capture of graphs."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def freeze_gc_for_cudagraph_capture() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.collect()
