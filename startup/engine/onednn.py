"""Limits the caches of compiled kernels in oneDNN, with which torch multiplies matrices on a CPU."""

import os
from typing import Final

from envs.registry import env

_CAPACITY: Final = 128
"""Kernels per cache. Kernels are compiled for each shape: four or five for each number of tokens in a step.

By default 1024 kernels are cached, twice: in oneDNN's own cache and in that of ideep, through which torch
uses it. The caches fill slowly, with half a megabyte per kernel, which looks like a leak: half a gigabyte
beside a model of 135M parameters. The shapes of frequent steps (one token for each running sequence) fit into
128. A miss compiles the kernel again, which takes 0.6 ms in a step with a number of tokens that was not used
recently.
"""


def limit_kernel_caches() -> None:
    """Sets the capacities that the user has not set, here and for children; call before torch is loaded."""
    if env.ONEDNN_PRIMITIVE_CACHE_CAPACITY.raw is None and env.DNNL_PRIMITIVE_CACHE_CAPACITY.raw is None:
        os.environ[env.ONEDNN_PRIMITIVE_CACHE_CAPACITY.name] = str(_CAPACITY)
    if env.LRU_CACHE_CAPACITY.raw is None:
        os.environ[env.LRU_CACHE_CAPACITY.name] = str(_CAPACITY)
