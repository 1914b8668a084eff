"""The only module that sets the start method of multiprocessing."""

import logging
import multiprocessing
import sys
from contextlib import suppress
from multiprocessing.context import BaseContext

from startup.errors import StartupError

logger = logging.getLogger(__name__)


def use_start_method(wanted: str) -> BaseContext:
    """Sets the process-wide start method and returns a context with the wanted one.

    multiprocessing allows setting the method only once: if another one was set before, a warning is logged,
    and the returned context still starts processes with the wanted method.

    Raises:
        StartupError: `fork` is wanted, but CUDA is initialised here: a forked process could not use it.
    """
    if wanted == "fork" and _uses_cuda():
        raise StartupError(
            "the start method 'fork' cannot be used once CUDA is initialised in this process: "
            "set VLLM_WORKER_MULTIPROC_METHOD to forkserver or spawn"
        )
    with suppress(RuntimeError):
        multiprocessing.set_start_method(wanted)
    in_force = multiprocessing.get_start_method()
    if in_force != wanted:
        logger.warning(
            "the multiprocessing start method was already %r; the engine is started with %r nevertheless",
            in_force,
            wanted,
        )
    return multiprocessing.get_context(wanted)


def _uses_cuda() -> bool:
    """Whether CUDA is initialised in this process; without torch it is not."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())
