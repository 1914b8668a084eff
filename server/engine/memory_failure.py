"""Tells errors that are for want of memory from others, and what the operator can do about them."""

import errno

import torch

_SIGNS = ("can't allocate memory", "not enough memory", "cannot allocate memory", "bad_alloc", "out of memory")
"""What torch's RuntimeErrors on CPUs, and those of C++, say."""
_PREFIX = "DefaultCPUAllocator: "
_MAX_CHARS = 200


def describe_memory_failure(err: BaseException) -> str | None:
    """One line with what was asked for and the way out; None for an error of another kind."""
    if not _is_memory_failure(err):
        return None
    lines = str(err).partition(_PREFIX)[2].splitlines() or str(err).splitlines() or [type(err).__name__]
    reason = lines[0].strip()[:_MAX_CHARS]
    return f"the engine ran out of memory ({reason}): lower --max-num-seqs or --max-model-len, or give it more memory"


def _is_memory_failure(err: BaseException) -> bool:
    if isinstance(err, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(err, OSError):
        return err.errno == errno.ENOMEM
    return isinstance(err, RuntimeError) and any(sign in str(err).lower() for sign in _SIGNS)
