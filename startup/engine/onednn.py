"""How many compiled kernels oneDNN keeps, by which torch multiplies matrices on a CPU."""

import os
from typing import Final

from envs.registry import env

_CAPACITY: Final = 128
"""Kernels are compiled for each shape: four or five of them for each number of tokens that a step may have.

By default 1024 are kept, twice: in oneDNN's own cache and in that of ideep, through which torch uses it. These fill
slowly, at half a megabyte a kernel, which looks like a leak: half a gigabyte beside a model of 135M parameters. The
steps that come again and again (one token for each running sequence) fit into 128. Compiling a kernel anew costs
0.6 ms, in a step with a number of tokens that was not seen lately.
"""


def limit_kernel_caches() -> None:
    """Sets the capacities here and for children, unless the user has decided; call before torch is loaded."""
    if env.ONEDNN_PRIMITIVE_CACHE_CAPACITY.raw is None and env.DNNL_PRIMITIVE_CACHE_CAPACITY.raw is None:
        os.environ[env.ONEDNN_PRIMITIVE_CACHE_CAPACITY.name] = str(_CAPACITY)
    if env.LRU_CACHE_CAPACITY.raw is None:
        os.environ[env.LRU_CACHE_CAPACITY.name] = str(_CAPACITY)
