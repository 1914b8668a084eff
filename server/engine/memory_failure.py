"""Recognises errors caused by lack of memory and describes them with a remedy."""

import errno

import torch

_SIGNS = ("can't allocate memory", "not enough memory", "cannot allocate memory", "bad_alloc", "out of memory")
"""Parts of the messages of torch's RuntimeErrors on a CPU, and of C++ exceptions."""
_PREFIX = "DefaultCPUAllocator: "
_MAX_CHARS = 200


def describe_memory_failure(err: BaseException) -> str | None:
    """One line with the failed allocation and a remedy; None for other errors."""
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
