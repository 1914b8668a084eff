"""A plugin of vLLM that initializes CUDA while it is imported, as some libraries do."""

import ctypes

ctypes.CDLL("libcuda.so.1").cuInit(0)


def install() -> None:
    """Called by vLLM in each of its processes."""
